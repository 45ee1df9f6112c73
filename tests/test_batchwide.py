"""Selections with one budget for the batch; what holds for every selection is in ``test_selection.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pcm_rl import KeepProbabilities, Selection, group_advantage, select_chunks
from pcm_rl.batchwide import BATCHWIDE, advantage_score
from pcm_rl.episodes import EpisodeIndex
from pcm_rl.proportional import proportional_probabilities
from pcm_rl.selection import trajectory_weights

# group 0: a success of 2 chunks, failures of 4 and 3; group 1: both fail; one step a chunk but for the last row's two
SUCCESS = torch.tensor([1, 0, 0, 0, 0])
LENGTHS = torch.tensor([2, 4, 3, 2, 1])
GROUPS = torch.tensor([0, 0, 0, 1, 1])
EPISODE = torch.arange(5).repeat_interleave(LENGTHS)


def choose(selection: str, budget: int, *, seed: int = 0, valid: Tensor | None = None, **options: Any) -> Selection:
    rows = len(EPISODE)
    valid = torch.ones(rows, 2, dtype=torch.bool) if valid is None else valid
    return select_chunks(
        torch.zeros(rows, 2, 1), torch.zeros(rows, dtype=torch.int64), SUCCESS[EPISODE], GROUPS[EPISODE], EPISODE,
        KeepProbabilities(), valid=valid, budget=budget, selection=selection,
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip


def parts_of_full(value: Tensor) -> Tensor:
    """What each row adds to full GRPO's loss, for a row's mean token loss ``value [M]``."""
    full = choose("none", 1)
    return full.weight.double() * value / len(EPISODE)


def loss_of(got: Selection, value: Tensor) -> Tensor:
    return (got.weight.double() * value[got.index]).mean()


def test_score_is_the_factor_in_the_objective() -> None:
    valid = torch.ones(len(EPISODE), 2, dtype=torch.bool)
    score = advantage_score(
        SUCCESS[EPISODE], GROUPS[EPISODE], EpisodeIndex(EPISODE), trajectory_weights(EPISODE, valid)
    )
    # A = (1 - 1/3) / s and -1/3 / s with s = sqrt(1/3); a row of N chunks weighs 12 rows / 5 trajectories / N
    a = torch.tensor([2, 1, 1, 0, 0], dtype=torch.float64) * 3**-0.5
    assert score.tolist() == pytest.approx((a / LENGTHS * 12 / 5)[EPISODE].tolist(), rel=1e-5)


def test_top_advantage_table() -> None:
    # budget 1: 5 rows of 12; scores 2/2 (the success), 1/3, 1/4, 0
    got = choose("top-advantage", 1)
    assert got.index.tolist() == [0, 1, 6, 7, 8]
    # 5 rows x 1/5 of a trajectory x 1/N of its chunks
    assert got.weight.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])
    assert got.kept.tolist() == pytest.approx([1, 0, 0, 0, 0])


def test_top_advantage_is_a_part_of_the_full_loss() -> None:
    value = torch.randn(12, generator=torch.Generator().manual_seed(0)).double()
    for budget in range(1, 5):
        got = choose("top-advantage", budget)
        assert float(loss_of(got, value)) == pytest.approx(float(parts_of_full(value)[got.index].sum()), rel=1e-6)


def test_ties_are_broken_at_random() -> None:
    # budget 2: 9 rows; the 5 above, then the 4 of episode 1, then none of the group without a success
    assert choose("top-advantage", 2).index.tolist() == list(range(9))
    shorter = EPISODE != 4
    kept = torch.zeros(12)
    for seed in range(200):
        got = select_chunks(
            torch.zeros(11, 1, 1), torch.zeros(11, dtype=torch.int64), SUCCESS[EPISODE][shorter],
            GROUPS[EPISODE][shorter], EPISODE[shorter], KeepProbabilities(), budget=1, selection="top-advantage",
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        kept[got.index] += 1
    # four rows: the success's two, and two of the three chunks of the next
    assert kept[:2].tolist() == [200, 200] and not kept[2:6].any() and not kept[9:].any()
    assert float(kept[6:9].sum()) == 400
    assert bool(((kept[6:9] / 200 - 2 / 3).abs() < 4 * (2 / 9 / 200) ** 0.5).all())


@pytest.mark.parametrize("selection", BATCHWIDE)
@pytest.mark.parametrize("padding", ["drop", "keep"])
def test_budget_is_that_of_the_other_rules(selection: str, padding: str) -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[[5, 8]] = False
    for budget in range(1, 6):
        for seed in range(5):
            got = choose(selection, budget, seed=seed, valid=valid, padding=padding)
            same = choose("random", budget, seed=seed, valid=valid, padding=padding)
            assert len(got.index) == len(same.index)


@pytest.mark.parametrize("selection", BATCHWIDE)
def test_rows_without_a_signal_come_last(selection: str) -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[5] = False  # padding of episode 1
    signal = {0, 1, 2, 3, 4, 6, 7, 8}
    for seed in range(20):
        kept = choose(selection, 2, seed=seed, valid=valid, padding="keep").index.tolist()
        assert signal <= set(kept) and len(kept) == 9
        kept = choose(selection, 1, seed=seed, valid=valid, padding="keep").index.tolist()
        assert set(kept) <= signal and len(kept) == 5


@pytest.mark.parametrize("selection", BATCHWIDE)
@pytest.mark.parametrize("padding", ["drop", "keep"])
def test_padding_rows_weigh_nothing(selection: str, padding: str) -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[[5, 8], :] = False
    value = torch.randn(12, generator=torch.Generator().manual_seed(1)).double()
    got = choose(selection, 4, valid=valid, padding=padding)
    full = choose("none", 4, valid=valid)
    assert len(got.index) == (12 if padding == "keep" else 10)
    assert float(loss_of(got, value)) == pytest.approx(float(loss_of(full, value)), rel=1e-6)


def test_weighted_is_unbiased_by_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the loss over all starts is full GRPO's loss of the rows with a signal."""
    value = torch.randn(12, generator=torch.Generator().manual_seed(2)).double()
    value = value * group_advantage(SUCCESS, GROUPS)[EPISODE].double()
    starts, total, counts = 6000, 0.0, torch.zeros(12, dtype=torch.float64)
    for k in range(starts):
        monkeypatch.setattr(torch, "rand", lambda *_, k=k, **__: torch.tensor((k + 0.5) / starts, dtype=torch.float64))
        got = choose("weighted", 1)
        total += float(loss_of(got, value)) / starts
        counts[got.index] += 1 / starts
    score = torch.tensor([1.0, 1 / 4, 1 / 3, 0, 0])[EPISODE]
    pi = proportional_probabilities(score, 5)
    # a row's ends may fall between two starts
    assert counts.tolist() == pytest.approx(pi.tolist(), abs=1.01 / starts)
    assert total == pytest.approx(float(parts_of_full(value).sum()), abs=1e-3)


def test_weighted_draws_are_those_of_a_seed() -> None:
    """With real draws: the mean of many estimates within four standard errors of full GRPO's loss."""
    value = torch.tensor([1.0, 1, 2, -3, 0, 1, 2, 2, -4, 0, 0, 0], dtype=torch.float64)
    losses = torch.stack([loss_of(choose("weighted", 1, seed=seed), value) for seed in range(400)])
    off = losses.mean() - parts_of_full(value).sum()
    assert abs(float(off)) < 4 * float(losses.std()) / 20
