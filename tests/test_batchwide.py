"""The selection with one budget for the batch; what holds for every selection is in ``test_selection.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pcm_rl import KeepProbabilities, Selection, select_chunks
from pcm_rl.batchwide import has_signal, outcome_advantage
from pcm_rl.episodes import EpisodeIndex

# group 0: a success of 2 chunks, failures of 4 and 3; group 1: both fail; one step a chunk but for the last row's two
SUCCESS = torch.tensor([1, 0, 0, 0, 0])
LENGTHS = torch.tensor([2, 4, 3, 2, 1])
GROUPS = torch.tensor([0, 0, 0, 1, 1])
EPISODE = torch.arange(5).repeat_interleave(LENGTHS)
SIGNAL = GROUPS[EPISODE] == 0


def choose(selection: str, budget: int, *, seed: int = 0, valid: Tensor | None = None, **options: Any) -> Selection:
    rows = len(EPISODE)
    valid = torch.ones(rows, 2, dtype=torch.bool) if valid is None else valid
    return select_chunks(
        torch.zeros(rows, 2, 1), torch.zeros(rows, dtype=torch.int64), SUCCESS[EPISODE], GROUPS[EPISODE], EPISODE,
        KeepProbabilities(), valid=valid, budget=budget, selection=selection,
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip


def parts_of_full(value: Tensor) -> Tensor:
    """What each row adds to full GRPO's loss over the group with a signal, for a row's mean token loss ``[M]``."""
    return torch.where(SIGNAL, value / 3 / LENGTHS[EPISODE], 0.0)


def loss_of(got: Selection, value: Tensor) -> Tensor:
    return (got.weight.double() * value[got.index]).mean()


def test_outcome_advantage_is_equation_1_in_every_row() -> None:
    # A = (1 - 1/3) / s and -1/3 / s with s = sqrt(1/3); group 1 has one outcome
    a = torch.tensor([2, -1, -1, 0, 0], dtype=torch.float64) * 3**-0.5
    got = outcome_advantage(SUCCESS[EPISODE], GROUPS[EPISODE], EpisodeIndex(EPISODE))
    assert got.tolist() == pytest.approx(a[EPISODE].tolist(), rel=1e-5)


def test_signal_is_that_of_a_trajectory_at_executed_chunks() -> None:
    rows, valid = EpisodeIndex(EPISODE), torch.ones(12, 1, dtype=torch.bool)
    advantage = torch.zeros(12)
    advantage[[1, 5, 9]] = torch.tensor([0.5, -0.5, 1.0])
    valid[9] = False
    assert has_signal(advantage, valid, rows).tolist() == [True] * 6 + [False] * 6


def test_top_advantage_table() -> None:
    # budget 1: 5 rows of 12; scores 2/2 (the success), 1/3, 1/4, 0
    got = choose("top-advantage", 1)
    assert got.index.tolist() == [0, 1, 6, 7, 8]
    # 5 rows x 1/3 of a trajectory, of those with a signal, x 1/N of its chunks
    assert got.weight.tolist() == pytest.approx([5 / 6, 5 / 6, 5 / 9, 5 / 9, 5 / 9])
    assert got.kept.tolist() == pytest.approx([1, 0, 0, 0, 0])


def test_top_advantage_is_a_part_of_the_full_loss() -> None:
    value = torch.randn(12, generator=torch.Generator().manual_seed(0)).double()
    for budget in range(1, 5):
        got = choose("top-advantage", budget)
        assert float(loss_of(got, value)) == pytest.approx(float(parts_of_full(value)[got.index].sum()), rel=1e-6)
    assert float(loss_of(choose("top-advantage", 4), value)) == pytest.approx(float(parts_of_full(value).sum()))


@pytest.mark.parametrize("padding", ["drop", "keep"])
def test_the_budget_is_that_of_all_trajectories_and_goes_to_those_with_a_signal(padding: str) -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[[5, 8]] = False  # the last chunks of episodes 1 and 2, which are never kept
    lengths = torch.tensor([2, 3, 2, 2, 1])
    for budget in range(1, 6):
        for seed in range(5):
            got = choose("top-advantage", budget, seed=seed, valid=valid, padding=padding)
            assert len(got.index) == min(int(lengths.clamp_max(budget).sum()), 7)
            assert set(got.index.tolist()) <= {0, 1, 2, 3, 4, 6, 7}


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


@pytest.mark.parametrize("padding", ["drop", "keep"])
def test_padding_rows_are_never_kept(padding: str) -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[[5, 8], :] = False
    value = torch.randn(12, generator=torch.Generator().manual_seed(1)).double()
    got = choose("top-advantage", 4, valid=valid, padding=padding)
    assert got.index.tolist() == [0, 1, 2, 3, 4, 6, 7]
    expected = (value[[0, 1]].mean() + value[[2, 3, 4]].mean() + value[[6, 7]].mean()) / 3
    assert float(loss_of(got, value)) == pytest.approx(float(expected), rel=1e-6)


def test_a_given_advantage_decides_chunk_by_chunk() -> None:
    """Scores |A| / N of 0.6/2, 3/2, 1/4, 2/3 (twice) and, in the group of one outcome, 0.8/2; the rest 0."""
    advantage = torch.zeros(12)
    advantage[[0, 1, 3, 6, 8, 10]] = torch.tensor([0.6, -3.0, 1.0, -2.0, 2.0, 0.8])
    for budget, expected in ((1, [1, 6, 8, 10, 0]), (2, [1, 6, 8, 10, 0, 3])):
        got = choose("top-advantage", budget, advantage=advantage)
        assert got.index.tolist() == sorted(expected)
    # four trajectories have a signal; a row keeps the part that it has in the mean over them
    share = {0: 2, 1: 2, 3: 4, 6: 3, 8: 3, 10: 2}
    assert got.weight.tolist() == pytest.approx([6 / 4 / share[row] for row in sorted(expected)])


def test_with_room_for_all_a_given_advantage_makes_no_difference_to_full_grpo() -> None:
    advantage = torch.randn(12, generator=torch.Generator().manual_seed(2))
    got, full = choose("top-advantage", 4, advantage=advantage), choose("none", 4)
    assert got.index.tolist() == full.index.tolist()
    assert got.weight.tolist() == pytest.approx(full.weight.tolist())


def test_a_batch_without_signal_keeps_nothing() -> None:
    got = select_chunks(
        torch.zeros(3, 1, 1), torch.zeros(3, dtype=torch.int64), torch.ones(3), torch.zeros(3, dtype=torch.int64),
        torch.tensor([0, 0, 1]), KeepProbabilities(), selection="top-advantage",
    )  # fmt: skip
    assert got.index.numel() == got.weight.numel() == 0


@pytest.mark.parametrize(
    ("advantage", "text"),
    [
        (torch.tensor([1.0, float("nan")] + [0.0] * 10), "advantage must be finite, got nan"),
        (torch.zeros(12, 1), r"advantage must have shape \(12,\), got \(12, 1\)"),
    ],
)
def test_advantages_that_do_not_fit(advantage: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        choose("top-advantage", 1, advantage=advantage)
