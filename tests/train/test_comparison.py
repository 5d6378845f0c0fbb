"""Tables of branches against independent computations, with networks whose answers are known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from faceedit.train import comparison, metrics
from faceedit.train.comparison import STYLE, UNEDITED, Branches, Networks, below, compare, measure, outside, turned

NAMES = ("Smiling", "Young", "Male")


class Judge(torch.nn.Module):
    """Reads smile, age and gender off the mean of red, green and blue: positive above a half."""

    names = NAMES

    def forward(self, views):
        return views.mean((2, 3))


class Identity:
    def describe(self, pictures):
        return F.adaptive_avg_pool2d(pictures, 2).flatten(1)


class Distance(torch.nn.Module):
    def forward(self, a, b):
        return (a - b).abs().mean((1, 2, 3))


NETWORKS = Networks(Judge(), Identity(), Distance())


def pictures(n, seed=0, size=32):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def flat(*colours, size=32):
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, size, size).contiguous()


def test_every_figure_of_a_comparison_is_of_its_own_pair():
    a, b = pictures(5), pictures(5, seed=1)
    found = compare(a, b, NETWORKS)
    x, y = a.double().numpy(), b.double().numpy()
    l2 = ((x - y) ** 2).reshape(5, -1).mean(1)
    np.testing.assert_allclose(found["L2"], l2)
    np.testing.assert_allclose(found["PSNR"], -10 * np.log10(l2))
    np.testing.assert_allclose(found["SSIM"], metrics.ssim(x, y))
    np.testing.assert_allclose(found["LPIPS"], 2 * np.abs(x - y).reshape(5, -1).mean(1), rtol=1e-5)
    u, v = ((2 * z - 1).reshape(5, 3, 2, 16, 2, 16).mean((3, 5)).reshape(5, 12) for z in (x, y))
    cosine = (u * v).sum(1) / np.sqrt((u**2).sum(1) * (v**2).sum(1))
    np.testing.assert_allclose(found["identity"], cosine, rtol=1e-4)


def test_outside_an_edit_only_what_it_left_alone_counts():
    before = torch.full((2, 3, 128, 128), 0.5)
    after = before.clone()
    after[0, 1, :, :64] += 0.3  # the left half of the first changes; all of the second does
    after[1] += 0.1
    inputs, made = before.clone(), before + 0.01
    made[0, :, :, :64] = 0  # must not count
    psnr, colour, pixels = outside(made, inputs, before, after).values()
    assert psnr[0] == pytest.approx(40, abs=0.01) and np.isnan(psnr[1])
    assert colour[0] == pytest.approx(0.01, abs=1e-6) and np.isnan(colour[1])
    # The blurred difference ends a few pixels to the right of the edit.
    assert 0.42 < pixels[0] < 0.5 and pixels[1] == 0
    after[0, 1, :, :64] = 0.5 + comparison.CHANGED / 2
    made[0, :, :, :64] = before[0, :, :, :64]
    psnr, colour, pixels = outside(made, inputs, before, after).values()
    assert colour[0] == pytest.approx(0.005, abs=1e-6)
    # Noise without a mean is no change of colour.
    noisy = inputs + torch.where(torch.arange(128) % 2 == 0, 0.1, -0.1)
    assert outside(noisy, inputs, before, after)["colour"][0] == pytest.approx(0, abs=1e-6)
    assert pixels[0] == 1 and psnr[0] == pytest.approx(40 + 10 * np.log10(2), abs=0.01)


def test_turned_counts_photographs_that_lack_the_attribute():
    before = torch.tensor([[-1.0, 1, 0], [-1, 1, 0], [-1, 1, 0], [-1, 1, 0], [2, 1, 0]])
    style = before + torch.tensor([[2.0, 0, 0]] * 4 + [[9, 0, 0]])
    refined = style - torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 0], [2, 0, 0], [0, 0, 0]])
    found = turned("smile", before, {STYLE: style, "refined": refined}, NAMES)
    assert found[STYLE]["turned"].value == 1 and found[STYLE]["turned"].n == 4
    assert found["refined"]["turned"].value == 0.75 and found["refined"]["kept"].value == 0.75
    # Age falls with the judge's output: all are young, and one is turned.
    old = before - torch.tensor([[0.0, 2, 0]] + [[0, 0, 0]] * 4)
    assert turned("age", before, {STYLE: old}, NAMES)[STYLE]["turned"] == metrics.wilson(1, 5)
    nobody = turned("smile", before.abs(), {STYLE: style}, NAMES)[STYLE]
    assert nobody["turned"].n == 0 and nobody["kept"].n == 0


def test_tables_have_the_mean_over_attributes_and_their_own_truth():
    inputs = flat((0.4, 0.6, 0.4), (0.3, 0.6, 0.4))
    smiling, old = inputs.clone(), inputs.clone()
    smiling[:, 0] += 0.3
    old[:, 1] -= 0.3
    faded = (inputs + smiling) / 2
    made = {
        (STYLE, UNEDITED): inputs, ("refined", UNEDITED): inputs + 0.1,
        (STYLE, "smile"): smiling, ("refined", "smile"): faded, (STYLE, "age"): old, ("refined", "age"): old,
    }  # fmt: skip
    found = measure(Branches(inputs, made, {}), ("smile", "age"), NETWORKS)
    assert list(found["reconstruction"]) == list(found["editing"]["mean"]) == [STYLE, "refined"]
    assert found["reconstruction"]["refined"]["L2"].value == pytest.approx(0.01)
    smile, age, mean = (found["editing"][name]["refined"]["L2"] for name in ("smile", "age", "mean"))
    assert smile.value == pytest.approx(0.15**2 / 3) and age.value == pytest.approx(0.3**2 / 3)
    assert mean.value == pytest.approx((smile.value + age.value) / 2) and mean.n == 2
    assert found["turned"]["smile"][STYLE]["turned"].value == 1
    assert found["turned"]["smile"]["refined"]["kept"].value == 0.5  # .3 + .15 does not reach a half
    assert list(found["outside"]) == ["smile", "mean"]  # age is global
    assert found["outside"]["smile"]["refined"]["PSNR"].n == 0  # the whole picture changed

    true = measure(Branches(inputs, made, {"smile": smiling, "age": old}), ("smile", "age"), NETWORKS)
    assert true["editing"]["mean"][STYLE]["L2"].value == pytest.approx(0, abs=1e-12)
    assert true["editing"]["smile"]["refined"]["L2"].value == pytest.approx(smile.value)


def test_what_misses_a_bar_is_said():
    def estimate(value):
        return metrics.Estimate(value, value, value, 9)

    good = {"PSNR": estimate(25.0), "SSIM": estimate(0.9), "LPIPS": estimate(0.05), "L2": estimate(0.003), "identity": estimate(0.8)}
    found = {
        "reconstruction": {"refined": good}, "editing": {"mean": {"refined": good}},
        "turned": {"smile": {"refined": {"kept": estimate(0.95)}}, "age": {"refined": {"kept": metrics.mean([])}}},
        "outside": {"smile": {"refined": {"PSNR": estimate(31.0)}}, "mean": {"refined": {"PSNR": estimate(31.0)}}},
    }  # fmt: skip
    assert below(found, "refined") == []
    bad = {"PSNR": estimate(23.0), "SSIM": estimate(0.8), "LPIPS": estimate(0.1), "L2": estimate(0.03), "identity": estimate(0.7)}
    found["reconstruction"]["refined"] = found["editing"]["mean"]["refined"] = bad
    found["turned"]["smile"]["refined"]["kept"] = estimate(0.5)
    found["outside"]["smile"]["refined"]["PSNR"] = estimate(20.0)
    assert len(below(found, "refined")) == 9 and "smile: kept 0.5 < 0.9" in below(found, "refined")
