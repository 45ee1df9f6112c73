from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcm_rl import inclusion_probabilities, sample_chunks

DTYPES = [torch.float32, torch.float64]
exact = settings(derandomize=True, deadline=None, max_examples=60)
DRAWS = 40_000
TABLES = [
    ([1.0, 0.5, 0.1, 0.1, 0.3], 2),
    ([1.0, 0.5, 0.1, 0.1, 0.3], 4),
    ([1.0, 1.0, 1.0, 1.0], 3),
    ([5.0, 1.0, 0.0, 0.0], 3),  # the third draw falls uniformly on the zeros
    ([0.0, 0.0, 0.0], 2),
    ([0.0, 2.0, 1.0], 1),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def set_probabilities(weight: list[float], budget: int) -> dict[frozenset[int], float]:
    """Plackett-Luce: each ordered draw's probability, added up over the orders of the same set."""
    out: dict[frozenset[int], float] = {}
    for order in itertools.permutations(range(len(weight)), min(budget, len(weight))):
        left, p = set(range(len(weight))), 1.0
        for k in order:
            total = sum(weight[j] for j in left)
            p *= weight[k] / total if total > 0 else 1 / len(left)
            left.remove(k)
        out[frozenset(order)] = out.get(frozenset(order), 0.0) + p
    return out


def inclusion(weight: list[float], budget: int) -> list[float]:
    sets = set_probabilities(weight, budget)
    return [sum(p for chosen, p in sets.items() if k in chosen) for k in range(len(weight))]


def counts_of_sets(drawn: Tensor) -> dict[frozenset[int], int]:
    code = (drawn.long() << torch.arange(drawn.shape[-1])).sum(-1)
    values, counts = code.unique(return_counts=True)
    return {
        frozenset(k for k in range(drawn.shape[-1]) if value >> k & 1): count
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("weight", "budget"), TABLES)
def test_draws_are_plackett_luce(weight: list[float], budget: int, dtype: torch.dtype) -> None:
    drawn = sample_chunks(torch.tensor(weight, dtype=dtype).expand(DRAWS, -1), budget, generator=generator())
    counts = counts_of_sets(drawn)
    expected = set_probabilities(weight, budget)
    assert sum(expected.values()) == pytest.approx(1)
    for chosen, p in expected.items():
        error = math.sqrt(p * (1 - p) / DRAWS)
        assert abs(counts.pop(chosen, 0) / DRAWS - p) <= 5 * error + 1e-12
    assert not counts


def test_draws_among_the_valid_are_plackett_luce() -> None:
    weight, valid = torch.tensor([1.0, 9.0, 0.5, 0.25, 9.0]), torch.tensor([True, False, True, True, False])
    drawn = sample_chunks(weight.expand(DRAWS, -1), 2, valid=valid.expand(DRAWS, -1), generator=generator(1))
    assert not drawn[:, ~valid].any()
    counts = counts_of_sets(drawn[:, valid])
    for chosen, p in set_probabilities([1.0, 0.5, 0.25], 2).items():
        assert abs(counts[chosen] / DRAWS - p) <= 5 * math.sqrt(p * (1 - p) / DRAWS)


@exact
@given(st.lists(st.floats(0.05, 1) | st.just(0.0), min_size=1, max_size=6), st.integers(1, 7))
def test_inclusion_by_enumeration(weight: list[float], budget: int) -> None:
    got = inclusion_probabilities(torch.tensor(weight, dtype=torch.float64), budget)
    assert got.tolist() == pytest.approx(inclusion(weight, budget), abs=1e-9)


def test_inclusion_table() -> None:
    # weights 2, 1, 1: chunk 1 first 1/4, or after chunk 0 (1/2 * 1/2), or after chunk 2 (1/4 * 1/3)
    got = inclusion_probabilities(torch.tensor([2.0, 1.0, 1.0]), 2)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx([5 / 6, 7 / 12, 7 / 12], abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inclusion_of_the_papers_size(dtype: torch.dtype) -> None:
    weight = 0.1 + 0.9 * torch.rand(2, 3, 64, generator=generator(), dtype=dtype)
    got = inclusion_probabilities(weight, 12)
    assert got.shape == weight.shape
    torch.testing.assert_close(got.sum(-1), torch.full((2, 3), 12.0, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (got > 0).all() and (got < 1).all()
    assert torch.equal(got[1, 2].argsort(), weight[1, 2].argsort())
    torch.testing.assert_close(got, inclusion_probabilities(7 * weight.double(), 12), rtol=0, atol=1e-9)
    rows = weight[0, :1].expand(4000, -1)
    kept = sample_chunks(rows, 12, generator=generator(2)).double().mean(0)
    assert ((kept - got[0, 0]).abs() < 5 * (got[0, 0] * (1 - got[0, 0]) / 4000).sqrt()).all()


def test_inclusion_of_equal_weights_and_large_budgets() -> None:
    assert inclusion_probabilities(torch.full((8,), 3.0), 2).tolist() == pytest.approx([0.25] * 8, abs=1e-12)
    assert inclusion_probabilities(torch.tensor([1.0, 0.5, 0.0]), 5).tolist() == [1, 1, 1]
    assert inclusion_probabilities(torch.tensor([1.0, 0.0, 0.0]), 2).tolist() == [1, 0.5, 0.5]
    assert inclusion_probabilities(torch.zeros(0, 3), 2).shape == (0, 3)


@exact
@given(st.integers(0, 3), st.integers(1, 12), st.integers(1, 14), st.integers(0, 10**6))
def test_exactly_the_budget(rows: int, chunks: int, budget: int, seed: int) -> None:
    source = generator(seed)
    weight = torch.rand(rows, 2, chunks, generator=source) * (torch.rand(rows, 2, chunks, generator=source) < 0.7)
    valid = torch.rand(rows, 2, chunks, generator=source) < 0.6
    got = sample_chunks(weight, budget, valid=valid, generator=source)
    assert got.shape == weight.shape and got.dtype == torch.bool
    assert not (got & ~valid).any()
    assert torch.equal(got.sum(-1), valid.sum(-1).clamp_max(budget))


def test_a_draw_is_a_race_in_float64() -> None:
    """Weights with which all chunks arrive nearly together: the last digits decide, the largest weight's first."""
    race = torch.empty(50, 9, dtype=torch.float64).exponential_(generator=generator(8))
    got = sample_chunks(race * (1 + 1e-11 * torch.arange(9.0, dtype=torch.float64)), 4, generator=generator(8))
    assert torch.equal(got, (torch.arange(9) >= 5).expand(50, -1))


def test_zero_weights_come_last() -> None:
    # the smallest positive float64 still wins against zero
    weight = torch.tensor([0.0, 1.0, 5e-324, 0.0], dtype=torch.float64).expand(1000, -1)
    got = sample_chunks(weight, 2, generator=generator())
    assert got.all(0).tolist() == [False, True, True, False]


def test_scale_of_a_row_does_not_matter() -> None:
    weight = torch.rand(50, 9, generator=generator(), dtype=torch.float64)
    scaled = weight * torch.logspace(-9, 9, 50, dtype=torch.float64).unsqueeze(-1)
    one, other = (sample_chunks(w, 4, generator=generator(3)) for w in (weight, scaled))
    assert torch.equal(one, other)


def test_same_seed_same_draw() -> None:
    weight = torch.rand(20, 9, generator=generator())
    first, again, other = (sample_chunks(weight, 4, generator=generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_generator_moves_on() -> None:
    weight, source = torch.ones(20, 9), generator()
    assert not torch.equal(sample_chunks(weight, 4, generator=source), sample_chunks(weight, 4, generator=source))


def test_a_larger_budget_adds_to_the_same_draw() -> None:
    weight = torch.rand(20, 9, generator=generator())
    fewer, more = (sample_chunks(weight, budget, generator=generator(1)) for budget in (3, 5))
    assert (fewer <= more).all()


def test_without_a_generator_the_global_seed_decides() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = sample_chunks(torch.ones(20, 9), 4)
        torch.manual_seed(3)
        assert torch.equal(first, sample_chunks(torch.ones(20, 9), 4))


@pytest.mark.parametrize("shape", [(4,), (0, 4), (3, 0), (2, 3, 4)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    assert sample_chunks(torch.ones(shape), 2, generator=generator()).shape == shape


@pytest.mark.parametrize("call", [sample_chunks, inclusion_probabilities])
def test_errors(call: Callable[..., Tensor]) -> None:
    for budget in (0, -1):
        with pytest.raises(ValueError, match=f"^budget must be at least 1 chunk per trajectory, got {budget}$"):
            call(torch.ones(3), budget)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="weights must be finite and not negative"):
            call(torch.tensor([1.0, wrong]), 1)
    with pytest.raises(ValueError, match=r"weight must have shape \[\.\.\., N\]"):
        call(torch.tensor(1.0), 1)


HINT = r"; convert it with \.bool\(\): ~ of another type is not its negation"


@pytest.mark.parametrize(
    ("valid", "got"),
    [(torch.ones(2, dtype=torch.bool), r"torch\.bool \(2,\)"), (torch.ones(3), r"torch\.float32 \(3,\)" + HINT)],
)
def test_valid_must_fit(valid: Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=rf"^valid must be bool \(3,\), got {got}$"):
        sample_chunks(torch.ones(3), 1, valid=valid)


def test_inclusion_of_weights_of_very_different_size() -> None:
    got = inclusion_probabilities(torch.tensor([1.0, 1e-3, 1e-6, 0.5], dtype=torch.float64), 3)
    assert got.tolist() == pytest.approx(enumerated([1.0, 1e-3, 1e-6, 0.5], 3), abs=1e-10)
    tiny = inclusion_probabilities(torch.tensor([1.0, 1e-40, 1e-40], dtype=torch.float64), 2)
    assert tiny.tolist() == pytest.approx([1.0, 0.5, 0.5], abs=1e-10)
    assert inclusion_probabilities(torch.zeros(3, 0), 2).shape == (3, 0)


def enumerated(weight: list[float], budget: int) -> list[float]:
    """Inclusion probabilities by enumeration of all ordered draws."""
    out = [0.0] * len(weight)
    for order in itertools.permutations(range(len(weight)), budget):
        left, probability = sum(weight), 1.0
        for k in order:
            probability *= weight[k] / left
            left -= weight[k]
        for k in order:
            out[k] += probability
    return out
