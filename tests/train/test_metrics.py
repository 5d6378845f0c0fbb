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
    sparsity,
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
