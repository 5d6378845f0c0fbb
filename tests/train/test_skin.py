"""The skin net's stage, in a world whose generator knows the parts of a face and whose outlines do not know hair."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_editor import make_editor

from faceedit.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from faceedit.models.skin_net import SkinNet
from faceedit.train import skin
from faceedit.train.data import Faces
from faceedit.train.skin import SkinRecipe, SkinTask, clustered, label, load, nearest, save, shares_inside
from faceedit.train.trainer import Trainer

FACE, HAIR, SCENE, RIM = range(4)
OUTLINE = torch.tensor([[0.25, 0.3], [0.75, 0.3], [0.75, 0.9], [0.25, 0.9]])
COLOURS = np.array([[220, 170, 140], [60, 30, 20], [30, 90, 200], [130, 110, 90]])


def recipe(out, **changes):
    values = dict(
        out=out, generator=out, encoder=out, frame=out, faces=24, held_out=4, named=24, clusters=6, forehead=0.0, width=16,
        steps=60, batch=4, lr=1e-2, warmup=2, decay=20, grid_every=0, device="cpu",
    )  # fmt: skip
    return SkinRecipe(**(values | changes))


def kinds(i):
    """What is where in face ``i``, 64 x 64: a lock of hair hangs over every third face."""
    where = np.full((64, 64), SCENE)
    where[8:60, 8:56] = HAIR
    where[20:58, 16:48] = FACE
    where[18:20, 10:54] = RIM  # as often within outlines as not
    where[20:22, 10:54] = RIM
    if i % 3 == 0:
        where[20:50, 16 : 26 + i % 5] = HAIR
    return where


class Generator:
    """Its maps say what is where, each kind in a direction of its own."""

    level_sizes = (8, 32, 64)

    def features(self, code, last):
        assert last == 2
        kind = torch.from_numpy(kinds(int(code[0, 0, 0])))
        maps = F.one_hot(kind, 4).permute(2, 0, 1)[None].float() * 5
        return None, F.avg_pool2d(maps, 2), maps


class Encoder:
    feature_channels, feature_sizes, latent_mean = (3, 3), (64, 32), torch.zeros(1)

    def __call__(self, x):
        return SimpleNamespace(features=[F.avg_pool2d(x, x.shape[-1] // side) for side in self.feature_sizes])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    codes = torch.arange(24.0)[:, None, None].expand(-1, 2, 3)
    pictures = np.stack([COLOURS[kinds(i)].repeat(4, 0).repeat(4, 1) for i in range(24)]).astype(np.uint8)
    faces = Faces(pictures, [str(i) for i in range(24)])
    frame_net = SimpleNamespace(outlines=lambda crop: (OUTLINE, None, None))
    labels = label(Generator(), frame_net, codes, faces, recipe(tmp_path_factory.mktemp("labels")))
    return faces, labels


def test_parts_get_their_names_from_outlines_though_hair_hangs_over_some_faces(world):
    _, labels = world
    for i in (0, 1):
        kind, found = torch.from_numpy(kinds(i)), labels[i]
        core = F.max_pool2d((F.one_hot(kind, 4).permute(2, 0, 1)[None].float() < 1).float(), 5, 1, 2)[0] == 0
        assert (found[core[FACE]] == 1).all() and (found[core[HAIR] | core[SCENE]] == 0).all()
    lock = labels[0][30:40, 18:22]
    assert (lock == 0).all() and (labels[1][30:40, 18:22] == 1).all()
    assert (labels == -1).any(), "what is within outlines as often as not has no name"


def test_the_net_learns_them_from_pictures(world, tmp_path):
    faces, labels = world
    settings = recipe(tmp_path)
    torch.manual_seed(0)
    figures = Trainer(SkinTask(settings, Encoder(), faces, labels), settings, "cpu").run()
    assert figures["right"] > 0.97 and figures["iou"] > 0.93
    net = load(tmp_path / "skin.safetensors", Encoder())
    x = torch.from_numpy(faces.pictures[21:22].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = net.find(Encoder()(x).features)[0]
    assert found[120:160, 72:88].max() < 0.3 and found[120:160, 130:180].min() > 0.7, "hair over the face, and skin"


def test_centres_are_the_means_of_what_is_nearest_to_them():
    source = torch.Generator().manual_seed(0)
    points = torch.rand(200, 2, generator=source).repeat(1, 2)
    found = clustered(points, 5, 60, seed=1)
    numbers = nearest(points, found)
    assert torch.equal(numbers, torch.cdist(points, found).argmin(1)) and len(numbers.unique()) == 5
    for i, centre in enumerate(found):
        torch.testing.assert_close(centre, points[numbers == i].mean(0))
    assert torch.equal(found, clustered(points, 5, 60, seed=1)) and not torch.equal(found, clustered(points, 5, 60, seed=2))


def test_shares_count_the_places_of_each_cluster():
    numbers, within = torch.tensor([0, 0, 0, 0, 2, 2]), torch.tensor([True, True, True, False, False, True])
    assert shares_inside(numbers, within, 3).tolist() == [0.75, 0.0, 0.5]


def test_a_generator_without_such_maps_is_refused():
    small = Generator()
    small.level_sizes = (8, 32)
    with pytest.raises(ConfigError, match=r"\[8, 32\].*\(32, 64\)"):
        skin.parts_of(small, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [(dict(held_out=24), "held_out"), (dict(named=25), "named"), (dict(inside=0.2), r"outside \(0.25\)")],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(tmp_path, **changes)


def test_what_is_no_skin_net_of_this_encoder_is_refused(tmp_path):
    encoder = make_editor().encoder
    with pytest.raises(CheckpointNotFoundError):
        load(tmp_path / "none.safetensors", encoder)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no skin net"):
        load(tmp_path / "other.safetensors", encoder)
    save(SkinNet((3, 3), (64, 32)), tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match="another encoder"):
        load(tmp_path / "small.safetensors", encoder)
