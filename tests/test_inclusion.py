"""Inclusion probabilities: against enumeration in rational numbers, closed forms, and exact conservation."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcm_rl import inclusion_probabilities, sample_chunks

exact = settings(derandomize=True, deadline=None, max_examples=25)


def enumerated(weight: list[float], budget: int) -> list[float]:
    """All sets that can be drawn, in rational numbers: nothing is rounded, underflows or overflows."""
    parts, every = [Fraction(value) for value in weight], range(len(weight))
    drawn = {frozenset[int](): Fraction(1)}
    for _ in range(budget):
        longer: dict[frozenset[int], Fraction] = {}
        for chosen, probability in drawn.items():
            left = sum(parts[k] for k in every if k not in chosen)
            for k in every:
                if k not in chosen:
                    longer[chosen | {k}] = longer.get(chosen | {k}, Fraction(0)) + probability * parts[k] / left
        drawn = longer
    return [float(sum(p for chosen, p in drawn.items() if k in chosen)) for k in every]


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@exact
@given(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=6), st.data())
def test_it_is_the_enumeration(weight: list[float], data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(weight) - 1))
    got = inclusion_probabilities(double(weight), budget)
    assert got.tolist() == pytest.approx(enumerated(weight, budget), abs=2e-13)


@exact
@given(st.lists(st.floats(-307, 307), min_size=2, max_size=6), st.data())
def test_weights_may_have_any_size(powers: list[float], data: st.DataObject) -> None:
    weight = [10.0**power for power in powers]
    budget = data.draw(st.integers(1, len(weight) - 1))
    got = inclusion_probabilities(double(weight), budget)
    assert got.tolist() == pytest.approx(enumerated(weight, budget), abs=2e-13)


@pytest.mark.parametrize("budget", range(1, 6))
def test_two_sizes_that_a_quotient_of_which_overflows(budget: int) -> None:
    weight = [1e300, 2e300, 3e300, 1e-300, 5e-324, 2e-300]
    got = inclusion_probabilities(double(weight), budget)
    assert got.tolist() == pytest.approx(enumerated(weight, budget), abs=2e-13)


@pytest.mark.parametrize(("number", "budget"), [(2, 1), (9, 4), (64, 12), (512, 128), (512, 511)])
def test_equal_weights_have_equal_probabilities(number: int, budget: int) -> None:
    got = inclusion_probabilities(torch.full((number,), 0.3), budget)
    torch.testing.assert_close(got, torch.full((number,), budget / number, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("number", [3, 64, 512])
def test_of_one_draw_they_are_the_weights(number: int) -> None:
    weight = torch.rand(number, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e-3
    got = inclusion_probabilities(weight, 1)
    torch.testing.assert_close(got, weight / weight.sum(), rtol=0, atol=1e-12)


def test_of_two_draws_it_is_a_double_sum() -> None:
    weight = torch.rand(512, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = weight / weight.sum()
    second = weight * ((first / (weight.sum() - weight)).sum() - first / (weight.sum() - weight))
    got = inclusion_probabilities(weight, 2)
    torch.testing.assert_close(got, first + second, rtol=0, atol=1e-12)


def test_of_all_but_one_what_is_left_out_is_a_closed_form() -> None:
    """The last of four: P(k last) = int w e^{-w t} prod_j (1 - e^{-w_j t}), by inclusion and exclusion."""
    weight = [0.9, 0.4, 0.2, 0.7]
    expected = []
    for k, w in enumerate(weight):
        others = [value for j, value in enumerate(weight) if j != k]
        subsets = itertools.chain.from_iterable(itertools.combinations(others, n) for n in range(4))
        expected.append(1 - sum((-1) ** len(chosen) * w / (w + sum(chosen)) for chosen in subsets))
    assert inclusion_probabilities(double(weight), 3).tolist() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("kind", ["phases", "spread", "two sizes", "one large"])
@pytest.mark.parametrize("budget", [1, 50, 128, 200])
def test_many_chunks(kind: str, budget: int) -> None:
    """What is kept adds up to the budget, more weight is kept more often, and the scale does not matter."""
    source = torch.Generator().manual_seed(2)
    noise = torch.rand(256, generator=source, dtype=torch.float64)
    weight = {
        "phases": double([1.0, 0.5, 0.1, 0.2, 0.1])[torch.randint(5, (256,), generator=source)],
        "spread": torch.logspace(-300, 300, 256, dtype=torch.float64)[torch.randperm(256, generator=source)],
        "two sizes": (noise + 1) * double([1e-300, 1e300])[(torch.arange(256) < 128).long()],
        "one large": torch.where(torch.arange(256) == 7, 1e12, noise + 0.01),
    }[kind]
    got = inclusion_probabilities(weight, budget)
    assert float(got.sum()) == pytest.approx(budget, abs=1e-10)
    assert bool((got >= 0).all()) and bool((got <= 1).all())
    assert bool((got[weight.argsort()].diff() >= -1e-12).all())
    torch.testing.assert_close(got, inclusion_probabilities(weight * 2.0**-3, budget), rtol=0, atol=1e-11)


def test_frequencies_of_many_chunks() -> None:
    weight = torch.rand(200, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 2
    draws = sample_chunks(weight.expand(4000, -1), 60, generator=torch.Generator().manual_seed(4))
    p = inclusion_probabilities(weight, 60)
    assert bool(((draws.double().mean(0) - p).abs() < 5 * (p * (1 - p) / 4000).sqrt()).all())


def test_zero_weights_share_what_is_left() -> None:
    assert inclusion_probabilities(double([0.0, 3.0, 0.0, 1.0]), 3).tolist() == [0.5, 1.0, 0.5, 1.0]
    assert inclusion_probabilities(double([0.0, 3.0, 1.0]), 1).tolist() == pytest.approx([0.0, 0.75, 0.25], abs=1e-13)
    assert inclusion_probabilities(double([0.0, 0.0]), 5).tolist() == [1.0, 1.0]
    assert math.isclose(float(inclusion_probabilities(torch.zeros(4), 3)[0]), 0.75)


def test_rows_do_not_know_of_each_other() -> None:
    weight = torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(5))
    got = inclusion_probabilities(weight, 4)
    assert got.shape == weight.shape and got.dtype == torch.float64
    assert torch.equal(got[1, 2], inclusion_probabilities(weight[1, 2], 4))
    assert inclusion_probabilities(torch.zeros(2, 0), 1).shape == (2, 0)
