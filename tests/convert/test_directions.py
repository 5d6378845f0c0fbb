"""Public directions, each in its own format, against the arithmetic that their authors give."""

import numpy as np
import pytest
import torch

from faceedit.convert.directions import Request, offset, parse
from faceedit.convert.unpickle import read
from faceedit.errors import ConversionError, UsageError

DIM, ROWS = 12, 18


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_a_request_in_words():
    request = parse("blond hair=C:/dir=x/ffhq_pca.pt:component=3,rows=7-9,step=-2.5")
    assert (request.name, request.path.as_posix()) == ("blond_hair", "C:/dir=x/ffhq_pca.pt")
    assert (request.component, request.rows, request.step, request.minus) == (3, (7, 9), -2.5, None)
    assert parse("smile=a.npy").step == 1 and parse("smile=a.npy:rows=4").rows == (4, 4)
    assert parse("a=after.npy:minus=before.npy").minus.name == "before.npy"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("boundary.npy", "Write NAME=FILE, such as smile=boundary.npy"),
        ("=boundary.npy", "Write NAME=FILE"),
        ("1st=boundary.npy", "Write NAME=FILE"),
        ("a=b.npy:rows=1-2,rows=3-4", "once each"),
        ("a=b.npy:rows=1-2,colour=3", "'colour=3' is none of component=..., rows=..., step=..., minus=..."),
        ("a=b.npy:rows=first", "rows must be two numbers, such as 0-8, not 'first'"),
        ("a=b.npy:step=0", "step must be a number but 0"),
        ("a=b.npy:step=inf", "step must be"),
        ("a=b.npy:component=x", "component must be"),
        ("a=b.npy:minus=", "minus must be a file"),
    ],
)
def test_a_request_that_is_none(text, said):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("save", ["npy", "pt", "flat", "big_endian"])
def test_interfacegan_boundary(save, random, tmp_path):
    normal = random.normal(size=(1, DIM)).astype(np.float32)
    path = tmp_path / "boundary"
    if save == "pt":
        torch.save(torch.from_numpy(normal), path)
    else:
        with path.open("wb") as file:
            np.save(file, {"npy": normal, "flat": normal[0], "big_endian": normal.astype(">f8")}[save])
    vector = offset(Request("smile", path, step=-0.5), read(path), ROWS)
    expected = -1.5 * normal / np.linalg.norm(normal)
    np.testing.assert_allclose(vector.numpy(), np.repeat(expected, ROWS, 0), rtol=1e-5, atol=1e-6)
    assert vector.dtype == torch.float32


@pytest.mark.parametrize("layout", ["pt", "npz"])
def test_ganspace_component(layout, random, tmp_path):
    components, mean, deviations = random.normal(size=(5, DIM)), random.normal(size=DIM), random.uniform(1, 2, 5)
    path = tmp_path / "pca"
    if layout == "pt":
        arrays = {"comp": components, "mean": mean, "std": deviations}
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    else:
        path = path.with_suffix(".npz")
        np.savez(
            path, lat_comp=components[:, None], lat_mean=mean[None], lat_stdev=deviations, act_comp=components[:, None, :4],
            act_mean=mean[None], act_stdev=deviations, var_ratio=deviations, random_stdevs=deviations,
        )  # fmt: skip
    vector = offset(Request("hair", path, component=3, rows=(7, 9), step=20.0), read(path), ROWS)
    expected = np.zeros((ROWS, DIM))
    expected[7:10] = 20 * components[3] * deviations[3]
    np.testing.assert_allclose(vector.numpy(), expected, rtol=1e-5)


def test_offset_in_w_plus(random, tmp_path):
    after, before = random.normal(size=(2, 1, ROWS, DIM)).astype(np.float32)
    np.save(tmp_path / "after.npy", after)
    np.save(tmp_path / "before.npy", before)
    content = read(tmp_path / "after.npy")
    np.testing.assert_array_equal(offset(Request("a", tmp_path / "after.npy"), content, ROWS).numpy(), after[0])
    request = parse(f"a={tmp_path / 'after.npy'}:rows=2-3,step=2,minus={tmp_path / 'before.npy'}")
    expected = np.zeros((ROWS, DIM), np.float32)
    expected[2:4] = 2 * (after - before)[0, 2:4]
    np.testing.assert_allclose(offset(request, content, ROWS).numpy(), expected, rtol=1e-6)


PCA = {"comp": np.ones((4, DIM)), "mean": np.ones(DIM), "std": np.ones(4)}


@pytest.mark.parametrize(
    ("content", "options", "error", "said"),
    [
        (PCA, {}, UsageError, "has 4 components: choose one, such as a=f:component=3,rows=0-8"),
        (PCA, {"component": 4}, UsageError, "has 4 components"),
        (PCA, {"component": -1}, UsageError, "has 4 components"),
        (PCA, {"component": 1, "minus": "x"}, UsageError, "minus= is for latents"),
        (PCA | {"std": np.ones(3)}, {"component": 1}, ConversionError, "do not belong together"),
        (np.ones((1, DIM)), {"component": 1}, UsageError, "only GANSpace's files have components"),
        (np.ones((1, DIM)), {"rows": (3, 18)}, UsageError, "rows 3-18 are not within 0-17"),
        (np.ones((16, DIM)), {"rows": (3, 16)}, UsageError, "not within 0-15"),
        (np.zeros((1, DIM)), {}, ConversionError, "normal is zero"),
        (np.full((1, DIM), np.nan), {}, ConversionError, "not finite"),
        (np.ones((3, DIM)), {}, ConversionError, "holds no direction but shape (3, 12)"),
        (np.ones((2, 18, DIM)), {}, ConversionError, "holds no direction but shape (2, 18, 12)"),
        (np.float32(1), {}, ConversionError, "holds no direction"),
        ([1.0], {}, ConversionError, "holds no direction but a list"),
    ],
)
def test_what_is_no_direction(content, options, error, said):
    with pytest.raises(error) as caught:
        offset(Request("a", "f", **options), content, ROWS)
    assert said in str(caught.value)


def test_two_latents_of_different_shape(tmp_path):
    np.save(tmp_path / "before.npy", np.ones((16, DIM)))
    with pytest.raises(UsageError, match="is not that of"):
        offset(Request("a", "f", minus=tmp_path / "before.npy"), np.ones((18, DIM)), ROWS)
