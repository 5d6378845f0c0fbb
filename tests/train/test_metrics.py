"""Metrics against values worked out by hand and against SciPy-free references."""

import math

import numpy as np
import pytest

from faceedit.train.metrics import (
    bootstrap,
    centred_cosine,
    effects,
    entanglement,
    mean,
    psnr,
    ratio,
    sparsity,
    ssim,
    success,
    wilson,
)


def test_centred_cosine_takes_the_mean_off_first():
    centre = np.array([10.0, 10.0])
    a = np.array([[11.0, 10.0], [11.0, 10.0], [11.0, 10.0]])
    b = np.array([[12.0, 10.0], [10.0, 13.0], [8.0, 10.0]])
    assert centred_cosine(a, b, centre) == pytest.approx([1, 0, -1])


@pytest.mark.parametrize(
    "hits, n, low, high",  # from the tables in Newcombe (1998), method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(hits, n, low, high):
    share = wilson(hits, n)
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-4)
    assert (share.value, share.n) == (hits / n, n)


def test_no_face_gives_no_figure():
    for nothing in (wilson(0, 0), success([]), mean([])):
        assert nothing.n == 0 and math.isnan(nothing.value) and math.isnan(nothing.low)
    assert all(math.isnan(bound) for bound in bootstrap([]))


def test_success_counts_the_faces_that_turned_in_the_wanted_sense():
    scores = [2.0, 0.5, -1.0, -0.1]
    assert success(scores).value == 0.5
    assert success(scores, -1).value == 0.5
    assert success(scores[:3]).value == pytest.approx(2 / 3)
    assert success(scores[:3], -1).value == pytest.approx(1 / 3)


def test_bootstrap_covers_as_the_normal_interval_of_a_mean_does():
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap(values)
    reach = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.03)
    assert bootstrap(values) == (low, high) and bootstrap(values, seed=1) != (low, high)


def test_mean_has_an_interval_around_it():
    estimate = mean([1.0, 2.0, 3.0, 6.0])
    assert estimate.value == 3 and estimate.n == 4 and estimate.low < 3 < estimate.high


def test_effects_are_in_standard_deviations_over_the_faces_that_count():
    shifts = np.zeros((2, 3, 2))
    shifts[0, :, 0] = [2, 4, 6]  # attribute 0 moves itself
    shifts[0, :, 1] = [1, 1, 9]  # and attribute 1; on face 2 that one is not defined
    shifts[1, :, 1] = [3, 5, 7]
    defined = np.array([[True, True], [True, True], [True, False]])
    table = effects(shifts, defined, [2.0, 4.0])
    np.testing.assert_allclose(table, [[2, 0.25], [0, 1]])
    nobody = effects(shifts, np.array([[True, False]] * 3), [2.0, 4.0])
    assert nobody[0, 0] == 2 and np.isnan(nobody[0, 1]) and np.isnan(nobody[1, 1])


def test_entanglement_is_off_the_diagonal_over_the_diagonal():
    table = np.array([[2.0, -0.5, 0.1], [0.3, 4.0, 0.0], [0.0, 0.9, -3.0]])
    assert entanglement(table) == pytest.approx((0.5 + 0.1 + 0.3 + 0.9) / 6 / 3)
    tied = np.zeros((3, 3), bool)
    tied[2, 1] = tied[1, 2] = True
    assert entanglement(table, tied) == pytest.approx((0.5 + 0.1 + 0.3) / 4 / 3)
    assert entanglement(np.diag([1.0, 2.0])) == 0
    assert math.isnan(entanglement(table, np.ones((3, 3), bool)))


def test_sparsity_counts_exact_zeros_only():
    direction = np.zeros((4, 5))
    direction[0, :2] = [1e-12, -3]
    assert sparsity(direction) == 0.1


def test_ssim_is_what_its_definition_gives_window_by_window():
    random = np.random.default_rng(0)
    a = random.random((2, 3, 14, 16))
    b = np.clip(a + 0.2 * random.standard_normal(a.shape), 0, 1)
    y, x = np.mgrid[-5:6, -5:6]
    weight = np.exp(-(x**2 + y**2) / 4.5)
    weight /= weight.sum()
    expected = []
    for p, q in zip(a, b):
        local = []
        for channel in range(3):
            for top in range(14 - 10):
                for left in range(16 - 10):
                    u = p[channel, top : top + 11, left : left + 11]
                    v = q[channel, top : top + 11, left : left + 11]
                    mu, mv = (weight * u).sum(), (weight * v).sum()
                    su, sv = (weight * (u - mu) ** 2).sum(), (weight * (v - mv) ** 2).sum()
                    suv = (weight * (u - mu) * (v - mv)).sum()
                    local.append(
                        (2 * mu * mv + 1e-4) * (2 * suv + 9e-4) / ((mu**2 + mv**2 + 1e-4) * (su + sv + 9e-4))
                    )
        expected.append(np.mean(local))
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(ssim(a, a), 1)


def test_psnr_is_of_unit_range_and_ends_at_the_rounding_of_8_bits():
    np.testing.assert_allclose(psnr([0.01, 1.0]), [20, 0])
    rounding = np.random.default_rng(0).random(200_000)
    error = np.square(np.rint(rounding * 255) / 255 - rounding).mean()
    np.testing.assert_allclose(psnr([0.0]), -10 * np.log10(error), atol=0.05)


def test_a_ratio_of_means_is_paired():
    before = np.array([1.0, 1, 1, 0, 1, 1, 0, 1])
    found = ratio(before * 0.5, before)
    assert found == (0.5, 0.5, 0.5, 8)  # in every draw, however many of either there are
    found = ratio([1, 0, 1, 0, 1, 1], [1, 1, 1, 1, 1, 0])
    assert found.value == pytest.approx(4 / 5) and found.low < 0.8 < found.high
    assert math.isnan(ratio([1, 0], [0, 0]).value) and ratio([], []).n == 0


def test_estimates_become_json_without_nan():
    assert mean([]).to_dict() == {"value": None, "low": None, "high": None, "n": 0}
    assert mean([0.123456]).to_dict(digits=3)["value"] == 0.123
