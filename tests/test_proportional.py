from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcm_rl.proportional import proportional_probabilities, systematic_draw

exact = settings(derandomize=True, deadline=None, max_examples=60)
scores = st.lists(st.sampled_from([0.0, 1e-3, 0.25, 1.0, 1.0, 3.0, 1e4]), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("score", "budget", "expected"),
    [
        ([4, 2, 1, 1], 2, [1, 0.5, 0.25, 0.25]),  # the largest is just certain: c = 1 / 4
        ([4, 2, 1, 1], 3, [1, 1, 0.5, 0.5]),
        ([1, 8, 1], 1.5, [0.25, 1, 0.25]),
        ([1, 1, 1, 1], 1, [0.25] * 4),
        ([3, 0, 0], 2, [1, 0.5, 0.5]),  # a score of 0 gets what the others cannot use
        ([0, 5, 5], 1, [0, 0.5, 0.5]),
        ([1, 2], 7, [1, 1]),
        ([1, 2], 0, [0, 0]),
    ],
)
def test_table(score: list[float], budget: float, expected: list[float]) -> None:
    got = proportional_probabilities(torch.tensor(score, dtype=torch.float64), budget)
    assert got.tolist() == pytest.approx(expected, abs=1e-15)


@exact
@given(scores, st.integers(0, 14))
def test_one_constant_below_one(values: list[float], budget: int) -> None:
    """The conditions of the minimum of ``sum score^2 / pi``: pi / score is one constant, or pi is 1 and it is less."""
    score = torch.tensor(values, dtype=torch.float64)
    pi = proportional_probabilities(score, budget)
    assert float(pi.sum()) == pytest.approx(min(budget, len(values)), abs=1e-9)
    assert bool(((pi >= 0) & (pi <= 1)).all())
    inside = (score > 0) & (pi < 1)
    if bool(inside.any()):
        constant = pi[inside] / score[inside]
        torch.testing.assert_close(constant, constant[:1].expand_as(constant), rtol=1e-12, atol=0)
        assert bool((pi[score == 0] == 0).all())
        certain = (score > 0) & (pi == 1)
        assert bool((constant[0] * score[certain] >= 1 - 1e-12).all())


def draws(probability: Tensor, number: int) -> Tensor:
    """One draw from the middle of each of ``number`` equal parts of the starts."""
    return torch.stack([systematic_draw(probability, start=(k + 0.5) / number) for k in range(number)])


def test_inclusion_probabilities_by_enumeration() -> None:
    # all ends lie on multiples of 1 / 8, so that eight starts stand for all of them
    pi = torch.tensor([0.5, 0.25, 1.0, 0.0, 0.125, 0.625, 0.5], dtype=torch.float64)
    drawn = draws(pi, 8)
    assert drawn.double().mean(0).tolist() == pi.tolist()
    assert drawn.sum(1).tolist() == [3] * 8


@exact
@given(scores, st.integers(1, 11), st.floats(0, 1, exclude_max=True))
def test_every_stretch_gets_its_share(values: list[float], budget: int, start: float) -> None:
    pi = proportional_probabilities(torch.tensor(values, dtype=torch.float64), budget)
    drawn = systematic_draw(pi, start=start)
    assert int(drawn.sum()) == min(budget, len(values))
    for i in range(len(pi)):
        for j in range(i + 1, len(pi) + 1):
            share = float(pi[i:j].sum())
            assert math.floor(share - 1e-9) <= int(drawn[i:j].sum()) <= math.ceil(share + 1e-9)


def test_a_whole_number_of_rows_in_spite_of_rounding() -> None:
    for total, size in ((7, 10), (333, 1000), (999, 3000)):
        pi = torch.full((size,), total / size, dtype=torch.float64)
        for start in (0.0, 1e-17, 0.5, 1 - 2**-53):
            assert int(systematic_draw(pi, start=start).sum()) == total


def test_generator_decides() -> None:
    pi = torch.full((50,), 0.1, dtype=torch.float64)
    first, again, other = (systematic_draw(pi, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_no_rows() -> None:
    empty = torch.zeros(0)
    assert proportional_probabilities(empty, 3).shape == systematic_draw(empty).shape == (0,)


def test_errors() -> None:
    for score in ([-1.0, 2.0], [math.nan], [math.inf], [[1.0]]):
        with pytest.raises(ValueError, match=r"score must be \[M\], finite and not negative"):
            proportional_probabilities(torch.tensor(score), 1)
    for budget in (-1, math.nan):
        with pytest.raises(ValueError, match="budget must not be negative"):
            proportional_probabilities(torch.ones(2), budget)
    for probability in ([1.5], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match=r"must be \[M\] in \[0, 1\]"):
            systematic_draw(torch.tensor(probability))
    with pytest.raises(ValueError, match=r"start must lie in \[0, 1\)"):
        systematic_draw(torch.ones(2), start=1.0)
