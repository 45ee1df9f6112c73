from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pcm_rl import action_divergence, gradient_variance

PHASES = 4
DTYPES = [torch.float32, torch.float64]


class Batch(NamedTuple):
    actions: Tensor
    phase: Tensor
    success: Tensor
    group: Tensor
    valid: Tensor

    def divergence(self, num_phases: int = PHASES) -> tuple[Tensor, Tensor, Tensor]:
        return action_divergence(*self[:4], num_phases=num_phases, valid=self.valid)

    def take(self, rows: Tensor) -> Batch:
        return Batch(*(field[rows] for field in self))


def random_batch(seed: int, dtype: torch.dtype = torch.float64, rows: int = 60) -> Batch:
    """Chunks whose last steps were often not executed, some of them not at all, with NaN in those places."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(rows, 5, 3, generator=generator, dtype=dtype)
    executed = torch.randint(0, 6, (rows,), generator=generator)
    valid = torch.arange(5) < executed.unsqueeze(-1)
    actions[~valid] = torch.nan
    phase = torch.randint(-1, PHASES, (rows,), generator=generator)
    group = torch.randint(0, 4, (rows,), generator=generator) * 11 - 5
    success = torch.rand(rows, generator=generator) < 0.4
    success[group == 6] = True  # one group carries no signal
    phase[(phase == 2) & success] = 1  # one phase only in failures
    return Batch(actions, phase, success, group, valid)


def mean_of_executed(batch: Batch, rows: list[int], step: int, dim: int) -> float | None:
    values = [float(batch.actions[m, step, dim]) for m in rows if batch.valid[m, step]]
    return sum(values) / len(values) if values else None


def group_score(batch: Batch, won: list[int], lost: list[int]) -> float:
    square = 0.0
    for step in range(batch.actions.shape[1]):
        for dim in range(batch.actions.shape[2]):
            a, b = (mean_of_executed(batch, rows, step, dim) for rows in (won, lost))
            if a is not None and b is not None:
                square += (a - b) ** 2
    return math.sqrt(square)


def reference(batch: Batch) -> tuple[list[float], list[int], list[int]]:
    """Equation 5 by loops over groups, phases, steps and dimensions."""
    scores, wins, losses = [], [], []
    part = [m for m in range(len(batch.phase)) if batch.valid[m].any()]
    for c in range(PHASES):
        of_groups, number = [], [0, 0]
        for g in sorted(set(batch.group.tolist())):
            mine = [m for m in part if batch.group[m] == g and batch.phase[m] == c]
            won = [m for m in mine if batch.success[m]]
            lost = [m for m in mine if not batch.success[m]]
            if won and lost:
                of_groups.append(group_score(batch, won, lost))
                number[0] += len(won)
                number[1] += len(lost)
        scores.append(sum(of_groups) / len(of_groups) if of_groups else math.nan)
        wins.append(number[0])
        losses.append(number[1])
    return scores, wins, losses


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(6))
def test_equation_5(seed: int, dtype: torch.dtype) -> None:
    batch = random_batch(seed, dtype)
    score, wins, losses = batch.divergence()
    expected = reference(batch)
    assert score.dtype == torch.float64 and wins.dtype == losses.dtype == torch.int64
    assert score.tolist() == pytest.approx(expected[0], rel=1e-12, nan_ok=True)
    assert (wins.tolist(), losses.tolist()) == expected[1:]
    assert score[2].isnan() and not score[1].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_table(dtype: torch.dtype) -> None:
    # group 0, phase 0: means (2, 2) and (-1, -2), distance 5; group 1, phase 0: means (0, 1) and (0, 0), distance 1
    actions = torch.tensor([[1, 2], [3, 2], [-1, -2], [0, 1], [0, 0], [9, 9]], dtype=dtype).unsqueeze(1)
    phase = torch.tensor([0, 0, 0, 0, 0, 1])
    success = torch.tensor([1, 1, 0, 1, 0, 1])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    score, wins, losses = action_divergence(actions, phase, success, group, num_phases=3)
    assert score[0].item() == pytest.approx(3.0, rel=1e-15)
    assert score[1:].isnan().all()
    assert (wins.tolist(), losses.tolist()) == ([3, 0, 0], [2, 0, 0])


def test_steps_not_executed_are_left_out_of_both_means() -> None:
    actions = torch.tensor([[2.0, 100.0], [4.0, 3.0], [0.0, 7.0]]).unsqueeze(-1)
    valid = torch.tensor([[True, False], [True, True], [True, True]])
    success, same = torch.tensor([True, True, False]), torch.zeros(3, dtype=torch.int64)
    # step 0: mean(2, 4) - 0 = 3; step 1: 3 - 7 = -4
    score, wins, losses = action_divergence(actions, same, success, same, num_phases=1, valid=valid)
    assert (score.item(), wins.item(), losses.item()) == (5.0, 2, 1)


def test_a_step_nobody_executed_on_one_side_says_nothing() -> None:
    actions = torch.tensor([[2.0, 100.0], [0.0, 7.0]]).unsqueeze(-1)
    valid = torch.tensor([[True, False], [True, True]])
    same = torch.zeros(2, dtype=torch.int64)
    assert action_divergence(actions, same, torch.tensor([1, 0]), same, num_phases=1, valid=valid)[0].item() == 2.0


@pytest.mark.parametrize("piece", [1, 7, 20, 45, 10**6])
def test_rows_that_are_added_in_pieces_give_the_same(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(2)
    expected = batch.divergence()
    monkeypatch.setattr("pcm_rl.divergence._PIECE", piece)
    for got, whole in zip(batch.divergence(), expected, strict=True):
        torch.testing.assert_close(got, whole, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(batch.actions, random_batch(2).actions, rtol=0, atol=0, equal_nan=True)  # as they were


@pytest.mark.parametrize("won", [True, False])
def test_one_outcome_is_no_evidence(won: bool) -> None:
    batch = random_batch(0)
    score, wins, losses = batch._replace(success=torch.full_like(batch.success, won)).divergence()
    assert score.isnan().all()
    assert not wins.any() and not losses.any()


def test_outcomes_of_different_groups_are_not_compared() -> None:
    success = torch.tensor([True, False])
    score, _, _ = action_divergence(torch.ones(2, 1, 1), torch.zeros(2).long(), success, torch.tensor([0, 1]))
    assert score.isnan().all()


def test_empty_batch() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    score, wins, losses = action_divergence(torch.zeros(0, 8, 7), none, none.bool(), none)
    assert score.isnan().all() and score.shape == (5,)
    assert wins.tolist() == losses.tolist() == [0] * 5


@pytest.mark.parametrize("seed", range(3))
def test_order_of_rows_and_names_of_groups_do_not_matter(seed: int) -> None:
    batch = random_batch(seed)
    order = torch.randperm(len(batch.phase), generator=torch.Generator().manual_seed(seed))
    other = batch.take(order)
    moved = other._replace(group=3 - 2 * other.group)
    for got, expected in zip(moved.divergence(), batch.divergence(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0, equal_nan=True)


def test_rows_without_phase_or_executed_step_take_no_part() -> None:
    batch = random_batch(1)
    part = (batch.phase >= 0) & batch.valid.any(-1)
    assert not part.all()
    for got, expected in zip(batch.take(part).divergence(), batch.divergence(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0, equal_nan=True)


def test_scales_with_the_actions_and_ignores_an_offset() -> None:
    batch = random_batch(2)
    score = batch.divergence()[0]
    torch.testing.assert_close(batch._replace(actions=3 * batch.actions).divergence()[0], 3 * score, equal_nan=True)
    torch.testing.assert_close(batch._replace(actions=batch.actions + 2).divergence()[0], score, equal_nan=True)
    torch.testing.assert_close(batch._replace(success=~batch.success).divergence()[0], score, equal_nan=True)


def test_divergence_errors() -> None:
    batch = random_batch(3)
    cases = [
        ("actions must be float", batch._replace(actions=batch.actions[0])),
        ("actions must be float", batch._replace(actions=batch.actions.nan_to_num().long())),
        (r"phase must have shape \[60\]", batch._replace(phase=batch.phase[1:])),
        (r"success must have shape \[60\]", batch._replace(success=batch.success[1:])),
        (r"group must have shape \[60\]", batch._replace(group=batch.group[1:])),
        ("group must be an integer", batch._replace(group=batch.group.double())),
        ("phase must be an integer", batch._replace(phase=batch.phase.double())),
        ("success must be binary", batch._replace(success=batch.success * 0.3)),
        (r"valid must be bool \(60, 5\)", batch._replace(valid=batch.valid[:, 1:])),
        ("valid must be bool", batch._replace(valid=batch.valid.float())),
        ("phase must be below num_phases=4, got 4", batch._replace(phase=batch.phase + 1)),
        ("NaN or infinity in executed steps", batch._replace(valid=torch.ones_like(batch.valid))),
    ]
    for message, wrong in cases:
        with pytest.raises(ValueError, match=message):
            wrong.divergence()
    with pytest.raises(ValueError, match="num_phases must be at least 1"):
        batch.divergence(num_phases=0)
    with pytest.raises(ValueError, match="num_phases must be at least 1"):
        gradient_variance(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), num_phases=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equation_4(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(30, 6, generator=generator, dtype=dtype)
    phase = torch.randint(-1, 3, (30,), generator=generator)
    phase[:1] = 3
    got = gradient_variance(gradient, phase, num_phases=5)
    for c in range(5):
        rows = gradient.double().numpy()[phase.numpy() == c]
        if len(rows) < 2:
            assert math.isnan(got[c])
        else:
            square = sum(float(np.sum((row - rows.mean(0)) ** 2)) for row in rows)
            assert got[c].item() == pytest.approx(square / (len(rows) - 1), rel=1e-12)


def test_gradient_variance_table() -> None:
    gradient = torch.tensor([[0.0, 0.0], [2.0, 4.0], [5.0, 5.0]])
    # phase 0: 2 * 1^2 + 2 * 2^2 over n - 1 = 1
    assert gradient_variance(gradient, torch.tensor([0, 0, 1]), num_phases=2)[0].item() == 10.0


def test_gradient_variance_errors() -> None:
    with pytest.raises(ValueError, match=r"phase must have shape \[3\]"):
        gradient_variance(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="phase must be below num_phases=5, got 5"):
        gradient_variance(torch.zeros(1, 2), torch.tensor([5]))
