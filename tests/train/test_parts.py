"""The parts net's stage, in a world whose parser knows everything by its colour."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_editor import make_editor

from faceedit.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from faceedit.models.parts_net import PartsNet
from faceedit.train.data import Faces
from faceedit.train.face_parser import CLASSES, FaceParser
from faceedit.train.parts import PartsRecipe, PartsTask, cut, label, load, save
from faceedit.train.trainer import Trainer

FACE, HAIR, SCENE = range(3)
NAMES = ("nose", "hair", "cloth")
COLOURS = torch.tensor([[220.0, 170, 140], [60, 30, 20], [30, 90, 200]])
SIDE, EDGE = 128, 8  # of the faces, and of the margin around them


def recipe(out, **changes):
    values = dict(
        out=out, photos=out, parser=out, encoder=out, held_out=4, width=16, steps=60, batch=4, lr=1e-2, warmup=2, decay=20,
        grid_every=0, device="cpu", bf16=False,
    )  # fmt: skip
    return PartsRecipe(**(values | changes))


def kinds(i):
    """What is where in face ``i``, 64 x 64: a lock of hair hangs over every third face."""
    where = np.full((64, 64), SCENE)
    where[8:60, 8:56] = HAIR
    where[20:58, 16:48] = FACE
    if i % 3 == 0:
        where[20:50, 16 : 26 + i % 5] = HAIR
    return where


def photograph(i):
    """The same with a margin, in which all is green."""
    picture = np.zeros((SIDE + 2 * EDGE, SIDE + 2 * EDGE, 3), np.uint8)
    picture[..., 1] = 255
    picture[EDGE:-EDGE, EDGE:-EDGE] = COLOURS.numpy()[kinds(i)].repeat(2, 0).repeat(2, 1)
    return picture


class Parser(torch.nn.Module):
    """Logits by the nearest colour."""

    def forward(self, pictures):
        assert pictures.shape[-1] == 512 and 0 <= pictures.min() and pictures.max() <= 1
        pictures = F.avg_pool2d(pictures, 8) * 255
        far = (pictures[:, None] - COLOURS[None, :, :, None, None]).abs().sum(2)
        logits = torch.full((len(pictures), len(CLASSES), 64, 64), -1e4)
        for kind, name in enumerate(NAMES):
            logits[:, CLASSES.index(name)] = -far[:, kind]
        return logits


class Encoder:
    feature_channels, feature_sizes, latent_mean = (3, 3), (64, 32), torch.zeros(1)

    def __call__(self, x):
        return SimpleNamespace(features=[F.avg_pool2d(x, x.shape[-1] // side) for side in self.feature_sizes])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    photos = Faces(np.stack([photograph(i) for i in range(24)]), [str(i) for i in range(24)])
    return photos, label(Parser(), photos, tmp_path_factory.mktemp("labels") / "labels.npy", bf16=False)


def test_faces_are_cut_from_their_margins(world):
    photos, _ = world
    wanted = torch.from_numpy(photos.pictures[3:5, EDGE:-EDGE, EDGE:-EDGE].copy()).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(cut(photos, np.array([3, 4])), wanted)


def test_labels_are_the_parsers_parts(world):
    _, labels = world
    for i in (0, 1, 5):
        wanted = np.eye(3)[kinds(i)] * 255
        assert np.abs(labels.pictures[i] - wanted).mean() < 8 and np.array_equal(labels.pictures[i].argmax(2), kinds(i))


def test_labels_are_made_once(world, tmp_path):
    photos, labels = world

    class Never(Parser):
        def forward(self, pictures):
            raise AssertionError("parsed again")

    label(Parser(), photos, tmp_path / "labels.npy", bf16=False)
    again = label(Never(), photos, tmp_path / "labels.npy", bf16=False)
    assert np.array_equal(again.pictures, labels.pictures)


def test_the_net_learns_them_from_photographs(world, tmp_path):
    photos, labels = world
    settings = recipe(tmp_path)
    torch.manual_seed(0)
    figures = Trainer(PartsTask(settings, Encoder(), photos, labels), settings, "cpu").run()
    assert min(figures["face_right"], figures["hair_right"]) > 0.96 and min(figures["face_iou"], figures["hair_iou"]) > 0.88
    net = load(tmp_path / "parts.safetensors", Encoder())
    face, hair = net.find(Encoder()(cut(photos, np.array([21]))).features)[0]
    lock, cheek = (slice(120, 160), slice(74, 86)), (slice(120, 160), slice(130, 180))
    assert face[lock].max() < 0.3 and face[cheek].min() > 0.7, "hair over the face, and skin"
    assert hair[lock].min() > 0.7 and hair[cheek].max() < 0.3


def test_there_must_be_photographs_to_learn_from(world, tmp_path):
    with pytest.raises(ConfigError, match=r"held_out \(24\) must be below the number of photographs \(24\)"):
        PartsTask(recipe(tmp_path, held_out=24), Encoder(), *world)


def test_what_is_no_parts_net_of_this_encoder_is_refused(tmp_path):
    encoder = make_editor().encoder
    with pytest.raises(CheckpointNotFoundError):
        load(tmp_path / "none.safetensors", encoder)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no parts net"):
        load(tmp_path / "other.safetensors", encoder)
    save(PartsNet((3, 3), (64, 32)), tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match="another encoder"):
        load(tmp_path / "small.safetensors", encoder)


# --- the parser ---------------------------------------------------------------------------------


def test_the_parser_reads_the_published_layout(tmp_path):
    torch.manual_seed(0)
    net = FaceParser().eval()
    tensors = net.state_dict()
    # Names and shapes as published, with two heads that only its training had.
    assert len(tensors) == 177 and tensors["cp.resnet.layer4.1.bn2.running_var"].shape == (512,)
    assert tensors["cp.arm32.bn_atten.weight"].shape == (128,) and tensors["conv_out.conv_out.weight"].shape == (19, 256, 1, 1)
    heads = {f"conv_out{n}.conv_out.weight": torch.zeros(19, 64, 1, 1) for n in (16, 32)}
    torch.save(tensors | heads, tmp_path / "parser.pth")
    picture = torch.rand(1, 3, 128, 128)
    logits = FaceParser.from_file(tmp_path / "parser.pth")(picture)
    assert logits.shape == (1, 19, 16, 16) and torch.equal(logits, net(picture))


def test_what_is_no_parser_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="79999_iter.pth"):
        FaceParser.from_file(tmp_path / "other.pth")
