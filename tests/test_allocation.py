from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_rl import KeepProbabilities, allocation_speedup, budget_curve, budget_knee, neyman_allocation

nan = math.nan
DTYPES = [torch.float32, torch.float64]
exact = settings(derandomize=True, deadline=None, max_examples=100)
scores = st.one_of(st.just(nan), st.just(0.0), st.floats(1e-3, 1e3))
sequences = st.lists(st.lists(scores, min_size=3, max_size=3), min_size=1, max_size=14)
masses = st.lists(st.tuples(st.floats(0.1, 50), st.floats(1e-3, 1e3)), min_size=1, max_size=6)


class Reference:
    """Equations 7-9 in plain Python."""

    def __init__(self, phases: int, floor: float, every: int) -> None:
        self.floor, self.every = floor, every
        self.probs = [1.0] * phases
        self.window: list[list[float]] = []
        self.started = False

    def update(self, score: list[float]) -> list[float]:
        if not self.started:
            self.started = not all(math.isnan(s) for s in score)
            self.refresh([score])
        else:
            self.window.append(score)
            if len(self.window) == self.every:
                self.refresh(self.window)
                self.window = []
        return self.probs

    def refresh(self, window: list[list[float]]) -> None:
        mean: dict[int, float] = {}
        for c in range(len(self.probs)):
            known = [row[c] for row in window if not math.isnan(row[c])]
            if known:
                mean[c] = sum(known) / len(known)
        total = sum(mean.values())
        share = {c: m / total for c, m in mean.items()} if total > 0 else dict.fromkeys(mean, 1.0)
        peak = max(share.values(), default=1.0)
        self.probs = [max(self.floor, share[c] / peak) if c in share else p for c, p in enumerate(self.probs)]


@exact
@given(sequences, st.sampled_from([0.0, 0.1, 0.5]), st.integers(1, 4))
def test_equations_7_to_9(sequence: list[list[float]], floor: float, every: int) -> None:
    keep, expected = KeepProbabilities(3, floor, every), Reference(3, floor, every)
    for score in sequence:
        got = keep.update(torch.tensor(score, dtype=torch.float64))
        assert got.dtype == torch.float64
        assert got.tolist() == pytest.approx(expected.update(score), rel=1e-12)
        assert torch.equal(got, keep.probs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_table(dtype: torch.dtype) -> None:
    keep = KeepProbabilities(num_phases=3, floor=0.1, refresh_every=2)

    def update(*score: float) -> list[float]:
        return keep.update(torch.tensor(score, dtype=dtype)).tolist()

    assert keep.probs.tolist() == [1, 1, 1]
    assert update(4, 2, 0) == [1, 0.5, 0.1]  # first update at once
    assert update(1, 8, 2) == [1, 0.5, 0.1]  # fixed in between
    assert update(3, 8, nan) == [0.25, 1, 0.25]  # means 2, 8, 2
    assert update(8, 0, 0) == [0.25, 1, 0.25]  # the buffer was emptied
    assert update(8, 4, 0) == [1, 0.25, 0.1]  # means 8, 2, 0: nothing of the window before


def test_nothing_happens_before_any_evidence() -> None:
    keep = KeepProbabilities(2, refresh_every=2)
    for _ in range(5):
        assert keep.update(torch.tensor([nan, nan])).tolist() == [1, 1]
    assert keep.update(torch.tensor([1.0, 2.0])).tolist() == [0.5, 1]


def test_a_phase_without_score_keeps_its_probability() -> None:
    keep = KeepProbabilities(3, refresh_every=2)
    assert keep.update(torch.tensor([1.0, 4.0, nan])).tolist() == [0.25, 1, 1]
    for _ in range(2):
        keep.update(torch.tensor([nan, 1.0, 2.0]))
    assert keep.probs.tolist() == [0.25, 0.5, 1]


def test_a_window_without_evidence_changes_nothing_and_counts() -> None:
    keep = KeepProbabilities(2, refresh_every=2)
    keep.update(torch.tensor([1.0, 2.0]))
    for _ in range(2):
        assert keep.update(torch.tensor([nan, nan])).tolist() == [0.5, 1]
    keep.update(torch.tensor([2.0, nan]))
    assert keep.update(torch.tensor([nan, 1.0])).tolist() == [1, 0.5]


def test_no_divergence_anywhere_is_uniform() -> None:
    assert KeepProbabilities(3).update(torch.zeros(3)).tolist() == [1, 1, 1]


@exact
@given(sequences, st.sampled_from([1e-6, 0.5, 3.0, 1e6]))
def test_scale_of_the_scores_does_not_matter(sequence: list[list[float]], scale: float) -> None:
    one, other = KeepProbabilities(3), KeepProbabilities(3)
    for score in sequence:
        row = torch.tensor(score, dtype=torch.float64)
        assert other.update(scale * row).tolist() == pytest.approx(one.update(row).tolist(), rel=1e-12)


@exact
@given(sequences)
def test_probabilities_lie_between_the_floor_and_one(sequence: list[list[float]]) -> None:
    keep = KeepProbabilities(3, floor=0.2, refresh_every=2)
    for score in sequence:
        got = keep.update(torch.tensor(score, dtype=torch.float64))
        assert got.min() >= 0.2 and got.max() <= 1


@exact
@given(sequences, st.integers(0, 14))
def test_a_saved_state_continues_identically(sequence: list[list[float]], cut: int) -> None:
    keep = KeepProbabilities(3, refresh_every=3)
    for score in sequence[:cut]:
        keep.update(torch.tensor(score, dtype=torch.float64))
    saved = json.dumps(keep.state_dict(), allow_nan=False)
    restored = KeepProbabilities(3, refresh_every=3)
    restored.load_state_dict(json.loads(saved))
    assert json.dumps(restored.state_dict()) == saved
    for score in [*sequence[cut:], *sequence]:
        row = torch.tensor(score, dtype=torch.float64)
        assert torch.equal(restored.update(row), keep.update(row))


def test_probs_is_a_copy() -> None:
    keep = KeepProbabilities(2)
    keep.probs.zero_()
    keep.update(torch.tensor([1.0, 2.0])).zero_()
    assert keep.probs.tolist() == [0.5, 1]


def test_keep_probabilities_errors() -> None:
    with pytest.raises(ValueError, match="num_phases must be at least 1"):
        KeepProbabilities(0)
    for floor in (-0.1, 1.1, nan):
        with pytest.raises(ValueError, match=r"floor must lie in \[0, 1\]"):
            KeepProbabilities(floor=floor)
    with pytest.raises(ValueError, match="refresh_every must be at least 1"):
        KeepProbabilities(refresh_every=0)
    keep = KeepProbabilities(2)
    with pytest.raises(ValueError, match=r"score must have shape \[2\], got \(3,\)"):
        keep.update(torch.ones(3))
    for wrong in (-1.0, math.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            keep.update(torch.tensor([1.0, wrong]))
    with pytest.raises(ValueError, match="3 phases, expected 2"):
        keep.load_state_dict(KeepProbabilities(3).state_dict())
    assert keep.probs.tolist() == [1, 1]


def columns(rows: list[tuple[float, float]], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([row[0] for row in rows], dtype=dtype), torch.tensor([row[1] for row in rows], dtype=dtype)


@exact
@given(masses, st.sampled_from([1, 7.5, 12]))
def test_equation_6(rows: list[tuple[float, float]], budget: float) -> None:
    got = neyman_allocation(*columns(rows), budget)
    mass = [n * math.sqrt(v) for n, v in rows]
    assert got.tolist() == pytest.approx([budget * m / sum(mass) for m in mass], rel=1e-12)
    assert got.sum().item() == pytest.approx(budget, rel=1e-12)


@exact
@given(masses, st.integers(0, 1000))
def test_no_other_allocation_has_less_variance(rows: list[tuple[float, float]], seed: int) -> None:
    count, variance = columns(rows)
    square = count**2 * variance
    best = (square / neyman_allocation(count, variance, 12)).sum()
    other = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1e-3
    assert (square / (12 * other / other.sum())).sum() >= best * (1 - 1e-12)


@exact
@given(masses)
def test_equation_23(rows: list[tuple[float, float]]) -> None:
    count, variance = columns(rows)
    got = allocation_speedup(count, variance).item()
    above = len(rows) * sum(n * n * v for n, v in rows)
    assert got == pytest.approx(above / sum(n * math.sqrt(v) for n, v in rows) ** 2, rel=1e-12)
    assert got >= 1 - 1e-12
    # it is the ratio of the estimate's variances under the uniform and the optimal allocation
    square = count**2 * variance
    uniform = (square / (12 / len(rows))).sum()
    assert got == pytest.approx((uniform / (square / neyman_allocation(count, variance, 12)).sum()).item(), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_allocation_tables(dtype: torch.dtype) -> None:
    assert neyman_allocation(*columns([(10, 1), (5, 4), (3, 0)], dtype), 12).tolist() == [6, 6, 0]
    assert neyman_allocation(*columns([(1, 4), (2, 9)], dtype), 4).tolist() == [1, 3]
    assert neyman_allocation(*columns([(3, 0), (1, 0)], dtype), 8).tolist() == [6, 2]
    assert allocation_speedup(*columns([(1, 1), (3, 1)], dtype)).item() == 1.25  # 2 * (1 + 9) / 4^2
    assert allocation_speedup(*columns([(2, 1), (1, 4)], dtype)).item() == 1  # all N sqrt(V) agree
    assert allocation_speedup(*columns([(2, 0), (1, 0)], dtype)).item() == 1


def test_allocation_errors() -> None:
    one = torch.ones(2)
    for call in (allocation_speedup, lambda n, v: neyman_allocation(n, v, 1)):
        with pytest.raises(ValueError, match=r"must be \[K\], got \(2,\) and \(3,\)"):
            call(one, torch.ones(3))
        for wrong in (-1.0, nan, math.inf):
            with pytest.raises(ValueError, match="count must be finite and not negative"):
                call(torch.tensor([1.0, wrong]), one)
            with pytest.raises(ValueError, match="variance must be finite and not negative"):
                call(one, torch.tensor([1.0, wrong]))
    for budget in (0, -1, nan):
        with pytest.raises(ValueError, match="budget must be a positive number"):
            neyman_allocation(one, one, budget)
    with pytest.raises(ValueError, match="all counts are zero"):
        neyman_allocation(torch.zeros(2), one, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_budget_curve_table(dtype: torch.dtype) -> None:
    score = torch.tensor([4, 2, 1, 1, nan], dtype=dtype)
    # trajectory 0: 4, 2, 2, 0 of 8; trajectory 1: 4, 1, 0, 0 of 5; trajectory 2 has no score and is left out
    phase = torch.tensor([[1, 0, 1, 4], [3, -1, 0, -1], [4, -1, -1, -1]])
    got = budget_curve(score, phase)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx([(0.5 + 0.8) / 2, (0.75 + 1) / 2, 1, 1], rel=1e-15)


def test_budget_curve_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(5, generator=generator, dtype=torch.float64)
    phase = torch.randint(-1, 5, (4, 6, 9), generator=generator)
    curves = []
    for row in phase.reshape(-1, 9).tolist():
        values = sorted((score[c].item() if c >= 0 else 0.0 for c in row), reverse=True)
        curves.append([sum(values[:b]) / sum(values) for b in range(1, 10)])
    expected = [sum(column) / len(column) for column in zip(*curves, strict=True)]
    assert budget_curve(score, phase).tolist() == pytest.approx(expected, rel=1e-12)


def test_budget_curve_without_any_score_is_nan() -> None:
    assert budget_curve(torch.full((5,), nan), torch.zeros(2, 3, dtype=torch.int64)).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("curve", "knee"),
    [
        ([0.5, 0.8, 0.95, 1.0], 2),  # above the chord by 0.25, 0.3, 0.2, 0
        ([0.9, 1.0, 1.0, 1.0], 1),  # saturates at 2: above by 0.4, 0
        ([0.2, 0.7, 1.0, 1.0, 1.0, 1.0], 2),  # saturates at 3: below by 0.13, above by 0.03, 0
        ([0.25, 0.5, 0.75, 1.0, 1.0], 4),  # straight
        ([1.0, 1.0], 1),
        ([1.0], 1),
    ],
)
def test_budget_knee_table(curve: list[float], knee: int, dtype: torch.dtype) -> None:
    assert budget_knee(torch.tensor(curve, dtype=dtype)) == knee


def test_budget_errors() -> None:
    phase = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match=r"score must be \[K\], finite and not negative"):
        budget_curve(torch.tensor([1.0, -1.0]), phase)
    with pytest.raises(ValueError, match="finite"):
        budget_curve(torch.tensor([1.0, float("inf")]), phase)
    with pytest.raises(ValueError, match=r"score must be \[K\]"):
        budget_curve(torch.ones(2, 1), phase)
    with pytest.raises(ValueError, match="phase must be below 1, got 1"):
        budget_curve(torch.ones(1), phase)
    for curve in (torch.zeros(0), torch.zeros(3), torch.ones(2, 2), torch.tensor([nan, 1.0])):
        with pytest.raises(ValueError, match="curve must be a non-empty"):
            budget_knee(curve)
