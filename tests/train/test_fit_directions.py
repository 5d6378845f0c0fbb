"""The fit on a synthetic world in which faces, attributes and what causes them are known."""

import json

import pytest
import torch
from torch import Tensor, nn

from faceedit.directions import Directions
from faceedit.train import fit_directions as module
from faceedit.train.checkpoint import read_metadata
from faceedit.train.fit_directions import (
    Target,
    cancel,
    choose_rows,
    conditional_direction,
    contact_sheet,
    crossing_scale,
    draw_faces,
    fit_directions,
    fit_normals,
    keep_views,
    label_faces,
    measure,
    on_rows,
)

DIM, ROWS, SIZE = 12, 8, 80
NAMES = ("Smiling", "Young", "Other")


def unit(*entries: float) -> Tensor:
    vector = torch.zeros(DIM)
    vector[: len(entries)] = torch.tensor(entries)
    return vector


class World(nn.Module):
    """A "generator" whose picture has three flat bands, one per attribute, linear in W+.

    Smiling is read from rows 2-3, Young from all rows, Other from rows 6-7 only, through gradients
    that overlap; so moving along one gradient moves the others too.
    """

    n_styles, style_dim = ROWS, DIM

    def __init__(self) -> None:
        super().__init__()
        self.mean_latent = torch.zeros(DIM)
        self.gradients = torch.stack([unit(1, 0.6), unit(0, 1, 0.5), unit(0.3, 0, 1)])
        share = torch.zeros(3, ROWS)
        share[0, 2:4], share[1], share[2, 6:8] = 1 / 2, 1 / ROWS, 1 / 2
        self.share = share

    def map(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        scale = torch.linspace(2, 0.5, DIM)
        return truncation * z * scale

    def truth(self, latents: Tensor) -> Tensor:
        return torch.einsum("kr,brd,kd->bk", self.share, latents, self.gradients)

    def preview(self, latents: Tensor) -> Tensor:
        bands = self.truth(latents).div(20)[:, None, :, None]
        return bands.expand(-1, 3, -1, 120).repeat_interleave(40, 2)


class Reader(nn.Module):
    """A "classifier" that reads the three bands back."""

    names = NAMES

    def index(self, name: str) -> int:
        return NAMES.index(name)

    def forward(self, views: Tensor) -> Tensor:
        centres = [int(SIZE * (i + 0.5) / 3) for i in range(3)]
        return views.mean((1, 3))[:, centres] * 20


@pytest.fixture(scope="module")
def world():
    return World(), Reader()


@pytest.fixture(scope="module")
def labelled(world):
    generator, classifier = world
    latents = draw_faces(generator, 400, seed=0)
    return latents, label_faces(generator, classifier, latents, batch=100)


def test_labels_are_those_of_the_world(world, labelled):
    latents, logits = labelled
    torch.testing.assert_close(logits, world[0].truth(latents), atol=0.05, rtol=0)


def test_the_fit_recovers_the_planted_gradients(world, labelled):
    latents, logits = labelled
    fit = fit_normals(latents[:, 0], logits)
    torch.testing.assert_close(fit.normals.T, world[0].gradients, atol=0.03, rtol=0)
    assert fit.r2.min() > 0.98


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_conditional_direction_moves_its_attribute_and_not_the_confounder(world, labelled, power):
    latents, logits = labelled
    fit = fit_normals(latents[:, 0], logits)
    free = conditional_direction(fit, 0, [], power)
    held = conditional_direction(fit, 0, [1, 2], power)
    true_change = world[0].gradients @ torch.stack([free, held], 1)
    assert true_change[1:, 0].abs().max() > 0.2  # the confounder is really there
    torch.testing.assert_close(true_change[:, 1], torch.tensor([1.0, 0, 0]), atol=0.05, rtol=0)


def test_with_nothing_held_and_no_metric_the_direction_is_the_normal(world, labelled):
    latents, logits = labelled
    fit = fit_normals(latents[:, 0], logits)
    direction = conditional_direction(fit, 0, [], 0.0)
    assert torch.cosine_similarity(direction, fit.normals[:, 0], 0) == pytest.approx(1, abs=1e-4)


def test_noise_makes_the_fit_choose_a_stronger_ridge(labelled):
    latents, logits = labelled
    noisy = logits + 30 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    assert fit_normals(latents[:, 0], noisy).ridge > fit_normals(latents[:, 0], logits).ridge


def test_rows_are_those_that_move_the_attribute_and_spare_the_others():
    # Group 0 moves only what is held, 1 the target, 2 the target a little and the other much.
    moved = torch.zeros(3, 5, 2)
    moved[1, :, 0], moved[2, :, 0] = -2.0, -0.5
    moved[:, :, 1] = torch.tensor([0.5, 0.1, 3.0])[:, None]
    groups = ((0, 2), (2, 4), (4, 8))
    assert choose_rows(moved, 0, -1, [1], groups) == (2, 4)
    with pytest.raises(ValueError):
        choose_rows(moved, 0, 1, [1], groups)


def test_rows_that_are_too_weak_alone_are_not_chosen():
    moved = torch.zeros(2, 5, 2)
    moved[:, :, 0] = torch.tensor([0.2, 2.0])[:, None]
    moved[:, :, 1] = torch.tensor([0.1, 0.5])[:, None]
    assert choose_rows(moved, 0, 1, [1], ((0, 2), (2, 4)))[1] == 4


def test_cancel_leaves_each_direction_its_own_effect_only():
    effects = torch.tensor([[1.0, 0.4], [-0.2, 2.0]])
    vectors = torch.eye(2)[:, None]  # so that the effect of a mixture is mixture @ effects
    assert torch.allclose(cancel(vectors, effects)[:, 0] @ effects, effects.diagonal().diag(), atol=1e-6)


def test_on_rows_fills_these_rows_only():
    offset = on_rows(torch.ones(3), (1, 3), 5)
    assert offset.sum(1).tolist() == [0, 3, 3, 0, 0]


def test_crossing_scale_is_where_the_share_has_crossed():
    # Four faces that cross at 0.5, 1, 1.5 and never.
    logits = torch.tensor([[-1.0, -2, -3, -9], [1, 0, -1, -8], [3, 2, 1, -7]])
    assert crossing_scale([0, 1, 2], logits, 0.25) == pytest.approx(0.5)
    assert crossing_scale([0, 1, 2], logits, 0.75) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="3 of 4"):
        crossing_scale([0, 1, 2], logits, 1.0)


TARGETS = {
    "smile": Target("Smiling", 1, ("Young", "Other")),
    "age": Target("Young", -1, ("Smiling", "Other")),
}


def test_calibrated_directions_turn_the_wanted_share_of_new_faces(world, labelled):
    generator, classifier = world
    latents, logits = labelled
    vectors = fit_directions(
        generator, classifier, latents, logits, TARGETS,
        probes=draw_faces(generator, 300, seed=1), share=0.8, n_scale=300, say=lambda text: None,
    )  # fmt: skip
    assert vectors["smile"].shape == (ROWS, DIM)
    report = measure(generator, classifier, vectors, TARGETS, draw_faces(generator, 300, seed=2), logits.std(0))
    assert report.rows["smile"] == (2, 4)
    for name in TARGETS:
        assert report.turned[name] == pytest.approx((0.8, 0.8), abs=0.1)  # the mirror does the same
        assert report.effects[name][name] > 1
    assert abs(report.effects["smile"]["age"]) < 0.1 * report.effects["smile"]["smile"]
    assert "300 held-out faces" in str(report)


def test_kept_views_are_resumed_and_made_anew_for_other_faces(world, labelled, tmp_path):
    generator, latents = world[0], labelled[0][:7]
    path = tmp_path / "views.safetensors"
    first = keep_views(generator, latents[:3], path, "key", chunk=2)
    more = keep_views(generator, latents, path, "key", chunk=2)
    assert more.shape == (7, 3, SIZE, SIZE) and torch.equal(more[:3], first)
    other = keep_views(generator, latents.flip(0), path, "other", chunk=2)
    assert torch.equal(other, more.flip(0))


def test_a_sheet_per_attribute_is_drawn(world, labelled, tmp_path):
    directions = Directions({"smile": torch.ones(ROWS, DIM)})
    contact_sheet(world[0], labelled[0][:2], directions, tmp_path / "sheet.png", size=16)
    assert (tmp_path / "sheet_smile.png").exists()


def test_the_command_writes_directions_with_their_recipe(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_generator", lambda path: world[0])
    monkeypatch.setattr(module.AttributeClassifier, "load", lambda path: world[1])
    monkeypatch.setattr(module, "TARGETS", TARGETS)
    out, generator = tmp_path / "out.safetensors", tmp_path / "generator"
    generator.write_bytes(b"weights")
    options = {"generator": generator, "classifier": "c", "out": out, "faces": 300, "held-out": 50, "probes": 60}
    options["views"] = tmp_path / "views.safetensors"
    threads = torch.get_num_threads()
    try:
        assert module.main([part for name, value in options.items() for part in (f"--{name}", str(value))]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "50 held-out faces" in capsys.readouterr().out
    directions = Directions.load(out)
    assert directions.names == ("smile", "age") and "FFHQ" in directions.licence
    recipe = json.loads(read_metadata(out)["source"])
    assert recipe["faces"] == 300 and set(recipe["report"]["turned"]) == {"smile", "age"}

    again = tmp_path / "again.safetensors"
    options |= {"fitted": out, "out": again, "rescale": "age=0.5"}
    try:
        assert module.main([part for name, value in options.items() for part in (f"--{name}", str(value))]) == 0
        with pytest.raises(SystemExit):
            module.main([part for name, value in (options | {"rescale": "agee=0.5"}).items()
                         for part in (f"--{name}", str(value))])
    finally:
        torch.set_num_threads(threads)
    smaller = Directions.load(again)
    assert torch.equal(smaller.vectors["age"], 0.5 * directions.vectors["age"])
    assert torch.equal(smaller.vectors["smile"], directions.vectors["smile"])
    assert smaller.ranges["age"] == (-1, 1) and smaller.ranges["smile"] == directions.ranges["smile"]
    assert json.loads(read_metadata(again)["source"])["rescale"] == {"age": 0.5}
