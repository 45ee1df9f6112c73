"""Selections with one budget for the batch; what holds for every selection is in ``test_selection.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pcm_rl import KeepProbabilities, Selection, group_advantage, select_chunks
from pcm_rl.batchwide import advantage_score, open_weights
from pcm_rl.episodes import EpisodeIndex
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


@pytest.mark.parametrize("padding", ["drop", "keep"])
def test_budget_is_that_of_the_other_rules(padding: str) -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[[5, 8]] = False
    for budget in range(1, 6):
        for seed in range(5):
            got = choose("top-advantage", budget, seed=seed, valid=valid, padding=padding)
            same = choose("random", budget, seed=seed, valid=valid, padding=padding)
            assert len(got.index) == len(same.index)
            assert len(choose("open", budget, seed=seed, valid=valid, padding=padding).index) <= len(same.index)


def test_rows_without_a_signal_come_last() -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[5] = False  # padding of episode 1
    signal = {0, 1, 2, 3, 4, 6, 7, 8}
    for seed in range(20):
        kept = choose("top-advantage", 2, seed=seed, valid=valid, padding="keep").index.tolist()
        assert signal <= set(kept) and len(kept) == 9
        kept = choose("top-advantage", 1, seed=seed, valid=valid, padding="keep").index.tolist()
        assert set(kept) <= signal and len(kept) == 5


@pytest.mark.parametrize("padding", ["drop", "keep"])
def test_padding_rows_weigh_nothing(padding: str) -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[[5, 8], :] = False
    value = torch.randn(12, generator=torch.Generator().manual_seed(1)).double()
    got = choose("top-advantage", 4, valid=valid, padding=padding)
    full = choose("none", 4, valid=valid)
    assert len(got.index) == (12 if padding == "keep" else 10)
    assert float(loss_of(got, value)) == pytest.approx(float(loss_of(full, value)), rel=1e-6)


# a group whose rollouts end one after the other: successes of 1, 3 and 5 chunks, failures of 4 and 6
RACE_SUCCESS = torch.tensor([1, 1, 1, 0, 0])
RACE_LENGTHS = torch.tensor([1, 3, 5, 4, 6])
RACE = torch.arange(5).repeat_interleave(RACE_LENGTHS)
# successes among those still running: all five at chunk 0, and only the last failure at chunk 5
RATE = [3 / 5, 2 / 4, 2 / 4, 1 / 3, 1 / 2, 0 / 1]


def race(selection: str, budget: int, **options: Any) -> Selection:
    return select_chunks(
        torch.zeros(len(RACE), 1, 1), torch.zeros_like(RACE), RACE_SUCCESS[RACE], torch.zeros_like(RACE), RACE,
        KeepProbabilities(), budget=budget, selection=selection, **options,
    )  # fmt: skip


def race_share() -> list[float]:
    """``|r - p_k| / |r - p_0|`` of every row, by hand."""
    return [
        abs(r - RATE[k]) / abs(r - RATE[0])
        for r, n in zip(RACE_SUCCESS.tolist(), RACE_LENGTHS.tolist(), strict=True)
        for k in range(n)
    ]


def test_open_weights_table() -> None:
    valid = torch.ones(len(RACE), 1, dtype=torch.bool)
    got = open_weights(RACE_SUCCESS[RACE], torch.zeros_like(RACE), EpisodeIndex(RACE).column, valid)
    assert got.tolist() == pytest.approx(race_share())
    assert got[-1] == 0 and got[0] == 1  # only a failure runs; everybody does


def test_open_counts_executed_steps_only() -> None:
    valid = torch.ones(len(RACE), 2, dtype=torch.bool)
    valid[[3, 8]] = False  # the last chunks of the second and the third success
    valid[9, 1] = False  # half of the first failure's first
    got = open_weights(RACE_SUCCESS[RACE], torch.zeros_like(RACE), EpisodeIndex(RACE).column, valid)
    rate = [3 / 5, 2 / 4, 1 / 3, 1 / 3, 0, 0]
    mean = (2 * (len(RACE) - 2) - 1) / len(RACE)
    assert got[9:13].tolist() == pytest.approx([n / mean * rate[k] / rate[0] for k, n in enumerate([1, 2, 2, 2])])
    assert got[[3, 8]].tolist() == [0, 0]


def test_open_weighs_groups_with_one_outcome_nothing() -> None:
    valid = torch.ones(12, 1, dtype=torch.bool)
    got = open_weights(SUCCESS[EPISODE], GROUPS[EPISODE], EpisodeIndex(EPISODE).column, valid)
    assert got[9:].tolist() == [0, 0, 0] and bool((got[:2] > 0).all())
    assert not choose("open", 1).index.ge(9).any()


def test_open_keeps_the_largest_part_of_the_whole() -> None:
    part = torch.tensor(race_share(), dtype=torch.float64) / len(RACE)  # of a mean over all rows
    score = part * group_advantage(RACE_SUCCESS, torch.zeros(5, dtype=torch.int64))[RACE].abs()
    value = torch.randn(len(RACE), generator=torch.Generator().manual_seed(3)).double()
    for budget in (1, 2, 3):
        got = race("open", budget, generator=torch.Generator().manual_seed(budget))
        assert len(got.index) == int(RACE_LENGTHS.clamp_max(budget).sum())
        left = torch.ones(len(RACE), dtype=torch.bool)
        left[got.index] = False
        assert float(score[got.index].min()) >= float(score[left].max()) - 1e-12
        assert float(loss_of(got, value)) == pytest.approx(float((part * value)[got.index].sum()), rel=1e-6)


@pytest.mark.parametrize("padding", ["drop", "keep"])
def test_open_with_room_for_all_leaves_out_what_is_decided(padding: str) -> None:
    """Then it is a mean over tokens with p_k in the place of the group's mean; advantage times weight says so."""
    got = race("open", 6, padding=padding)
    assert got.index.tolist() == list(range(len(RACE) - 1))
    advantage = group_advantage(RACE_SUCCESS, torch.zeros(5, dtype=torch.int64)).double()[RACE]
    deviation = float(RACE_SUCCESS.double().std())
    timed = (RACE_SUCCESS[RACE] - torch.tensor(RATE)[EpisodeIndex(RACE).column]) / deviation
    part = got.weight.double() / len(got.index) * len(RACE)
    assert (advantage[got.index] * part).tolist() == pytest.approx(timed[got.index].tolist(), rel=1e-5)


def test_open_of_a_batch_without_signal_keeps_nothing() -> None:
    got = select_chunks(
        torch.zeros(3, 1, 1), torch.zeros(3, dtype=torch.int64), torch.ones(3), torch.zeros(3, dtype=torch.int64),
        torch.tensor([0, 0, 1]), KeepProbabilities(), selection="open",
    )  # fmt: skip
    assert got.index.numel() == got.weight.numel() == 0


def test_open_goes_by_the_chunks_numbers_where_they_are_given() -> None:
    order = torch.randperm(len(RACE), generator=torch.Generator().manual_seed(4))
    chunk = EpisodeIndex(RACE).column
    zeros = torch.zeros(len(RACE), 1, 1)
    got = select_chunks(
        zeros, torch.zeros_like(RACE), RACE_SUCCESS[RACE][order], torch.zeros_like(RACE), RACE[order],
        KeepProbabilities(), chunk=chunk[order], budget=6, selection="open",
    )  # fmt: skip
    weight = dict(zip(order[got.index].tolist(), got.weight.tolist(), strict=True))
    same = race("open", 6)
    assert weight == pytest.approx(dict(zip(same.index.tolist(), same.weight.tolist(), strict=True)))


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        (torch.tensor([0, -1, 1]), "chunk numbers start at 0, got -1"),
        (torch.tensor([0, 1]), r"chunk must have shape \(3,\), got \(2,\)"),
    ],
)
def test_chunk_numbers_that_do_not_fit(chunk: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        select_chunks(
            torch.zeros(3, 1, 1), torch.zeros(3, dtype=torch.int64), torch.tensor([1, 1, 0]),
            torch.zeros(3, dtype=torch.int64), torch.tensor([0, 0, 1]), KeepProbabilities(), chunk=chunk,
            selection="open",
        )  # fmt: skip
