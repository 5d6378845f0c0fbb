"""Directions of one's own: the fit in a world where the truth is known, and the stage on a tiny editor."""

import json

import pytest
import torch
from PIL import Image
from tiny_editor import DIM, ROWS, make_editor

from faceedit import FaceEditor
from faceedit.directions import Directions
from faceedit.errors import UsageError
from faceedit.train.__main__ import main
from faceedit.train.checkpoint import read_metadata
from faceedit.train.fit_directions import (
    HOLD,
    LEAST,
    _held,
    _parser,
    finish,
    fit,
    raw_direction,
    score,
    w_metric,
)

# A world of codes

SPREAD = torch.linspace(2, 0.3, DIM, dtype=torch.float64)  # standard deviations of W
METRIC = torch.diag(1 / SPREAD)
RANDOM = torch.Generator().manual_seed(3)
TRUTH = torch.zeros(ROWS, DIM, dtype=torch.float64)
TRUTH[2:4] = SPREAD * torch.randn(DIM, generator=RANDOM, dtype=torch.float64)
AGE = (SPREAD * torch.randn(ROWS, DIM, generator=RANDOM, dtype=torch.float64))[None]


def world(n=40, seed=0, confounded=0.0):
    """Codes ``(2n, ROWS, DIM)``, n with the attribute; those are also older if `confounded`."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(2 * n) < n
    codes = SPREAD * torch.randn(2 * n, ROWS, DIM, generator=random, dtype=torch.float64)
    age = torch.randn(2 * n, generator=random, dtype=torch.float64) + confounded * labels
    return codes + labels[:, None, None] * 1.5 * TRUTH + age[:, None, None] * AGE, labels


def cosine(a, b):
    a, b = a.double(), b.double()
    dot = lambda x, y: torch.einsum("rd,de,re->", x, METRIC, y)  # noqa: E731
    return float(dot(a, b) / (dot(a, a) * dot(b, b)).sqrt())


def test_the_true_direction_is_found_and_empty_rows_stay_empty():
    codes, labels = world()
    found = fit(codes, labels, torch.zeros(0, ROWS, DIM), METRIC)
    raw, _ = raw_direction(codes, labels, torch.zeros(0, ROWS, DIM, dtype=torch.float64), METRIC)
    assert cosine(found.direction, TRUTH) > 0.94 > cosine(raw, TRUTH) + 0.05
    assert (found.direction[[0, 1, 4, 5, 6, 7]] == 0).all(1).sum() >= 5
    assert found.direction[2:4].all()
    assert found.auc > 0.97 and found.accuracy > 0.9


def test_what_the_sides_differ_in_besides_is_held():
    codes, labels = world(confounded=2.0)
    free = fit(codes, labels, torch.zeros(0, ROWS, DIM), METRIC)
    held = fit(codes, labels, AGE, METRIC)
    assert abs(cosine(held.direction, AGE[0])) < 1e-6
    assert cosine(free.direction, AGE[0]) > 0.3
    assert cosine(held.direction, TRUTH) > 0.85 > cosine(free.direction, TRUTH)


def test_a_direction_that_holding_uses_up_is_refused():
    codes, labels = world()
    axes = torch.eye(ROWS * DIM, dtype=torch.float64).view(-1, ROWS, DIM)
    with pytest.raises(UsageError, match="hold fewer"):
        fit(codes, labels, axes, METRIC)


def test_strength_1_closes_the_gap_between_the_sides():
    codes, labels = world()
    found = fit(codes, labels, AGE, METRIC)
    direction = found.direction.double()
    sides = [score(codes[side], direction, METRIC).mean() for side in (labels, ~labels)]
    moved = score(codes[~labels] + direction, direction, METRIC).mean()
    assert float(moved) == pytest.approx(float(sides[0]), rel=1e-4)
    assert float(sides[0] - sides[1]) > 0


def test_labels_without_meaning_are_not_told_apart():
    codes, labels = world()
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    assert fit(codes, mixed, torch.zeros(0, ROWS, DIM), METRIC).auc < 0.7


def test_too_few_pictures_are_refused():
    codes, labels = world(LEAST)
    assert fit(codes, labels, AGE, METRIC).direction.isfinite().all()
    with pytest.raises(UsageError, match=f"{LEAST - 1} usable.*{LEAST} without"):
        fit(codes[1:], labels[1:], AGE, METRIC)


def test_rows_that_stand_out_least_go_first():
    direction, standing = torch.ones(3, DIM), torch.tensor([4.0, 2.0, 1.0])
    shrunk = finish(direction, standing, 0.5, torch.zeros(0, 3, DIM), METRIC.float())
    assert shrunk[:, 0].tolist() == [0.5, 0.0, 0.0]


def test_the_metric_is_the_inverse_root_of_the_covariance_of_w():
    class World:
        style_dim, mean_latent = DIM, torch.zeros(DIM)

        @staticmethod
        def map(z):
            return torch.cat((z[:, 1:] * SPREAD[1:], 0 * z[:, :1]), 1).float()  # W does not have the last axis

    metric = w_metric(World)
    expected = torch.cat((1 / SPREAD[1:], torch.zeros(1, dtype=torch.float64))).diag()
    torch.testing.assert_close(metric, expected, atol=0.15, rtol=0.05)
    assert torch.equal(metric, w_metric(World))


# The stage


def test_an_attributes_own_names_are_not_held():
    own = make_editor().directions
    for given, held in ((["--name", "hat"], HOLD), (["--name", "Smiling"], HOLD[1:]), (["--name", "x", "--alias", "old"], HOLD[::2]),
                        (["--name", "hat", "--hold", "none"], ()), (["--name", "hat", "--hold", "male,beard"], ("gender", "beard"))):  # fmt: skip
        assert _held(_parser().parse_args([*given, "--out", "x"]), own) == held



@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """A checkpoint, and crops of two sides that differ in colour, one of them damaged."""
    folder = tmp_path_factory.mktemp("album")
    make_editor().save_pretrained(folder / "tiny")
    random = torch.Generator().manual_seed(0)
    lines = ["3 of these are not there, or damaged"]
    for side, red in (("with", 200), ("without", 60)):
        (folder / side).mkdir()
        for i in range(LEAST + 1):
            noise = torch.randint(-40, 40, (8, 8, 3), generator=random)
            pixels = (torch.tensor([red, 120, 120]) + noise).byte().numpy()
            Image.fromarray(pixels).resize((64, 64)).save(folder / side / f"{side}{i}.png")
            lines.append(f"{side}/{side}{i}.png,{int(side == 'with')}")
    (folder / "with" / "damaged.png").write_bytes((folder / "with" / "with0.png").read_bytes()[:60])
    (folder / "labels.csv").write_text("\n".join(["name,label", *lines[1:], "with/damaged.png,1", "gone.png,0"]))
    return folder


def stage(album, out, *options):
    return main([
        "fit-directions", "--name", "hat", "--out", str(out), "--checkpoint", str(album / "tiny"), "--aligned", *map(str, options),
    ])  # fmt: skip


def test_the_stage_from_two_folders_and_from_a_label_file(album, tmp_path, capsys, monkeypatch):
    out, sheet = tmp_path / "hat.safetensors", tmp_path / "hat.png"
    folders = ("--with", album / "with", "--without", album / "without")
    assert stage(album, out, *folders, "--alias", "cap", "--description", "a hat", "--licence", "CC0", "--sheet", sheet) == 0
    said = capsys.readouterr()
    assert "9 pictures with hat, 9 without; 1 skipped" in said.out
    assert "damaged.png" in said.err and "AUC 1.000" in said.out

    editor = FaceEditor.from_pretrained(album / "tiny").load_directions(out)
    info = editor.attributes["hat"]
    assert (info.aliases, info.licence, info.description) == (("cap",), "CC0", "a hat")
    assert info.success["pictures_with"] == 9 and info.success["left_out_auc"] == 1.0
    held = {name: editor.directions.vectors[name] for name in ("smile", "age", "gender")}
    metric, hat = w_metric(editor.generator), editor.directions.vectors["hat"].double()
    scale = float(score(hat[None], hat, metric)) ** 0.5
    for vector in held.values():
        length = float(score(vector[None].double(), vector.double(), metric)) ** 0.5
        assert abs(float(score(hat[None], vector.double(), metric))) < 1e-3 * scale * length
    assert json.loads(read_metadata(out)["source"])["held"] == ["smile", "age", "gender"]
    with Image.open(sheet) as image:
        assert image.width == 5 * 192

    # The same pictures by a label file: their codes are there already, and the direction is the same.
    inverted, real = [], FaceEditor.invert
    monkeypatch.setattr(FaceEditor, "invert", lambda self, image, **o: inverted.append(type(image)) or real(self, image, **o))
    again = tmp_path / "again.safetensors"
    table = ("--pictures", album, "--labels", album / "labels.csv", "--codes", tmp_path / "hat.codes.safetensors")
    assert stage(album, again, *table) == 0
    assert "1 labelled files are not in" in capsys.readouterr().out
    assert inverted.count(bytes) == 1  # the damaged one
    torch.testing.assert_close(Directions.load(again).vectors["hat"], Directions.load(out).vectors["hat"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--with", "with", "--without", "few"), "2 without"),
        (("--with", "with", "--without", "with"), "both sides"),
        (("--with", "with"), "--labels FILE"),
        (("--with", "with", "--without", "without", "--hold", "smiel"), "smile"),
        (("--with", "with", "--without", "nowhere"), "nowhere"),
    ],
)
def test_the_stage_refuses_what_cannot_be_fitted(album, tmp_path, capsys, options, named):
    (album / "few").mkdir(exist_ok=True)
    for i in range(2):
        (album / "few" / f"{i}.png").write_bytes((album / "without" / f"without{i}.png").read_bytes())
    options = [album / word if word in ("with", "without", "few", "nowhere") else word for word in options]
    assert stage(album, tmp_path / "hat.safetensors", *options) in (1, 2)
    assert named in capsys.readouterr().err
    assert not (tmp_path / "hat.safetensors").exists()


def test_the_stage_does_not_overwrite_unasked(album, tmp_path, capsys):
    (tmp_path / "hat.safetensors").write_bytes(b"precious")
    assert stage(album, tmp_path / "hat.safetensors", "--with", album / "with", "--without", album / "without") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "hat.safetensors").read_bytes() == b"precious"
