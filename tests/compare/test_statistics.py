from __future__ import annotations

import math

import numpy as np
import pytest

from pcm_rl.compare.statistics import (
    detectable_difference,
    interquartile_mean,
    largest_coverage,
    paired_difference,
    stratified_interval,
    student_central,
    student_quantile,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.7], 0.7),
        ([0.0, 0.3, 0.9], 0.4),  # nothing to cut from three
        ([9.0, 1.0, 2.0, -5.0], 1.5),  # one at each end
        ([8.0, 1.0, 2.0, 6.0, 100.0], (2.0 + 6.0 + 8.0) / 3),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 50.0], 4.5),  # two at each end
    ],
)
def test_interquartile_mean_by_hand(scores, expected):
    assert interquartile_mean(scores) == pytest.approx(expected, abs=1e-12)
    assert interquartile_mean([scores, scores[::-1]]) == pytest.approx([expected, expected], abs=1e-12)


def test_no_scores_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        interquartile_mean([])
    with pytest.raises(ValueError, match=r"\[S, T\]"):
        stratified_interval(np.zeros((2, 0)))
    with pytest.raises(ValueError, match="one shape"):
        paired_difference([0.1, 0.2], [0.1])


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (10, 2.22814), (30, 2.04227)]
)
def test_student_against_the_printed_table(freedom, quantile):
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, rel=3e-6)
    assert student_central(quantile, freedom) == pytest.approx(0.95, abs=1e-6)


def test_student_with_one_and_two_degrees_has_closed_forms():
    for t in (0.1, 1.0, 7.0):
        assert student_central(t, 1) == pytest.approx(2 / math.pi * math.atan(t), abs=1e-14)
        assert student_central(t, 2) == pytest.approx(t / math.sqrt(2 + t * t), abs=1e-14)
    assert student_quantile(0.5, 3) == pytest.approx(0.0, abs=1e-12)
    for probability, freedom in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="must be"):
            student_quantile(probability, freedom)


def test_stratified_interval_of_two_runs_by_hand():
    """The mean of two resampled scores is one of 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    interval = stratified_interval([0.0, 1.0])
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)
    narrow = stratified_interval([0.0, 1.0], level=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_tasks_are_resampled_apart():
    """Runs that are alike within each task leave nothing to chance, however much the tasks differ."""
    interval = stratified_interval([[0.1, 0.5, 0.9]] * 4)
    assert interval.low == pytest.approx(interval.value) and interval.high == pytest.approx(interval.value)
    mixed = stratified_interval([0.1, 0.5, 0.9] * 4)
    assert mixed.low < mixed.value < mixed.high


def test_one_run_has_no_interval():
    interval = stratified_interval([0.4])
    assert interval.value == 0.4 and math.isnan(interval.low) and math.isnan(interval.high)
    difference = paired_difference([0.4], [0.1])
    assert difference.mean == pytest.approx(0.3) and difference.pairs == 1
    assert math.isnan(difference.low) and math.isnan(difference.deviation) and math.isnan(difference.detectable)


def test_paired_difference_by_hand():
    first, second = [0.9, 0.7, 0.5, 0.3], [0.6, 0.6, 0.4, 0.4]  # differences .3, .1, .1, -.1
    difference = paired_difference(first, second)
    assert difference.mean == pytest.approx(0.1)
    assert difference.deviation == pytest.approx(math.sqrt(0.08 / 3))
    assert difference.detectable == pytest.approx((3.18245 + 0.97847) * math.sqrt(0.08 / 3) / 2, rel=1e-5)
    # Phi(-sqrt(4 / 3) 3.18) = 1.2e-4 is less than the 4^-4 of drawing one pair four times: the range
    assert (difference.low, difference.high) == pytest.approx((-0.1, 0.3))
    swapped = paired_difference(second, first)
    assert swapped.mean == pytest.approx(-difference.mean)
    assert paired_difference(first, first).detectable == 0.0


def test_what_the_seeds_share_leaves_the_paired_difference():
    seeds = np.array([0.1, 0.9, 0.4, 0.7, 0.2])
    difference = paired_difference(seeds + 0.05, seeds)
    assert (difference.low, difference.high) == pytest.approx((0.05, 0.05))


def test_the_range_of_few_pairs_bounds_the_coverage():
    assert [largest_coverage(pairs) for pairs in (1, 2, 3, 5)] == [0.0, 0.5, 0.75, 0.9375]
    difference = paired_difference([0.3, 0.1, 0.2], [0.0, 0.0, 0.0])  # three pairs: the interval is the range
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.3))


def test_coverage_on_normal_scores():
    """Known: P(|t_7| <= 1.96 sqrt(7 / 8)) = 89.1 % for the percentiles, and about 95 % once they are moved out."""
    pairs, trials = 8, 1000
    expected = student_central(1.959964 * math.sqrt((pairs - 1) / pairs), pairs - 1)
    assert expected == pytest.approx(0.891, abs=5e-4)
    samples = np.random.default_rng(0).normal(1.0, 1.0, size=(trials, pairs))
    plain = paired = 0
    for seed, scores in enumerate(samples):
        interval = stratified_interval(scores, lambda x: x.mean(-1), resamples=1000, seed=seed)
        difference = paired_difference(scores, np.zeros(pairs), resamples=1000, seed=seed)
        plain += interval.low <= 1.0 <= interval.high
        paired += difference.low <= 1.0 <= difference.high
    error = 3 * math.sqrt(0.9 * 0.1 / trials)
    assert plain / trials == pytest.approx(expected, abs=error)
    assert paired / trials == pytest.approx(0.95, abs=error)


@pytest.mark.parametrize("pairs", [5, 16])
def test_a_t_test_finds_the_detectable_difference_four_times_in_five(pairs):
    trials = 20_000
    effect = detectable_difference(1.0, pairs)
    samples = np.random.default_rng(1).normal(effect, 1.0, size=(trials, pairs))
    t = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(pairs))
    found = (np.abs(t) > student_quantile(0.975, pairs - 1)).mean()
    assert found == pytest.approx(0.8, abs=0.01 + 3 * math.sqrt(0.8 * 0.2 / trials))
