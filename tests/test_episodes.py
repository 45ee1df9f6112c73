from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pcm_rl import close_fraction, label_phases
from pcm_rl.episodes import (
    CHUNK,
    CHUNK_ID,
    DONE,
    EPISODE,
    GROUP,
    IMAGE,
    INSTRUCTION,
    IS_PAD,
    PHASE,
    SUCCESS,
    EpisodeIndex,
    check_batch,
    label_episodes,
    pad_episodes,
)

exact = settings(derandomize=True, deadline=None, max_examples=60)
ids = st.lists(st.integers(-3, 3), max_size=25)
LENGTH = 4


def make_batch(lengths: tuple[int, ...] = (5, 1, 8, 3), seed: int = 0) -> TensorDict:
    """Whole episodes, the last chunk of each cut short after its first step."""
    source = torch.Generator().manual_seed(seed)
    length = torch.tensor(lengths, dtype=torch.int64)
    rows = int(length.sum())
    number = torch.cat([torch.arange(n) for n in lengths] or [length])
    last = number == (length - 1).repeat_interleave(length)
    gripper = torch.rand(rows, 1, 1, generator=source) < 0.5
    actions = torch.randn(rows, LENGTH, 3, generator=source)
    actions[..., -1:] = torch.where(gripper, 1.0, -1.0).expand(rows, LENGTH, 1)
    batch = TensorDict(
        {
            CHUNK: actions,
            IS_PAD: last.unsqueeze(-1) & (torch.arange(LENGTH) > 0),
            EPISODE: torch.arange(len(lengths)).repeat_interleave(length) * 10,
            CHUNK_ID: number,
            GROUP: torch.zeros(rows, dtype=torch.int64),
            SUCCESS: torch.zeros(rows, dtype=torch.bool),
            IMAGE: torch.randint(0, 256, (rows, 3, 2, 2), generator=source).to(torch.uint8),
        },
        batch_size=[rows],
    )
    batch[PHASE] = label_episodes(batch)
    return batch


@exact
@given(ids)
def test_dense_by_loops(episode: list[int]) -> None:
    rows = EpisodeIndex(torch.tensor(episode, dtype=torch.int64))
    expected = [[m for m, e in enumerate(episode) if e == mine] for mine in sorted(set(episode))]
    longest = max(map(len, expected), default=0)
    assert rows.shape == (len(expected), longest)
    assert rows.length.tolist() == [len(row) for row in expected]
    values = torch.arange(len(episode))
    dense = rows.dense(values, -1)
    assert dense.tolist() == [row + [-1] * (longest - len(row)) for row in expected]
    assert torch.equal(rows.flat(dense), values)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64])
def test_dense_and_flat_keep_dtype_and_trailing_shape(dtype: torch.dtype) -> None:
    rows = EpisodeIndex(torch.tensor([4, 2, 4, 4, 2]))
    values = torch.arange(30).view(5, 2, 3).to(dtype)
    dense = rows.dense(values, 0)
    assert dense.shape == (2, 3, 2, 3) and dense.dtype == dtype
    assert not dense[0, 2].any()
    assert torch.equal(rows.flat(dense), values)


def test_episode_index_needs_one_dimension() -> None:
    with pytest.raises(
        ValueError, match=r"episode_id must have shape \[M\] or \[M, 1\], one entry a row, got \(2, 2\)"
    ):
        EpisodeIndex(torch.zeros(2, 2, dtype=torch.int64))


def reference_labels(batch: TensorDictBase, gripper_index: int = -1, **options: Any) -> Tensor:
    """Each episode labelled alone."""
    phase = torch.full((len(batch),), -1)
    for e in batch[EPISODE].unique():
        mine = batch[EPISODE] == e
        valid = ~batch[IS_PAD][mine]
        fraction = close_fraction(batch[CHUNK][mine][..., gripper_index], valid)
        phase[mine] = label_phases(fraction, valid.any(-1), **options)
    return phase


@pytest.mark.parametrize("gripper_index", [-3, -1, 0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_labels_are_those_of_each_episode_alone(seed: int, gripper_index: int) -> None:
    batch = make_batch(seed=seed)
    got = label_episodes(batch, gripper_index=gripper_index)
    assert got.dtype == torch.int64
    assert torch.equal(got, reference_labels(batch, gripper_index))


def test_episodes_need_not_be_neighbours() -> None:
    batch = make_batch()
    order = batch[CHUNK_ID].argsort(stable=True)
    assert torch.equal(label_episodes(batch[order]), label_episodes(batch)[order])


def test_labels_table() -> None:
    batch = make_batch((6, 2))
    command = torch.tensor([-1.0, -1, 1, 1, -1, -1, 1, -1])
    batch[CHUNK][..., -1] = command.unsqueeze(-1)
    assert label_episodes(batch).tolist() == [3, 3, 0, 0, 2, 2, 0, 2]
    batch[CHUNK][1, 0, -1] = 1.0  # the close has begun in the chunk before
    assert label_episodes(batch).tolist() == [3, 1, 0, 0, 2, 2, 0, 2]
    assert label_episodes(batch, close_above=2.0).tolist() == [3] * 8


def test_labeller_with_options() -> None:
    batch = make_batch()
    got = label_episodes(batch, functools.partial(label_phases, window=1))
    assert torch.equal(got, reference_labels(batch, window=1))


def test_labeller_that_looks_at_the_episode() -> None:
    batch = make_batch()
    lengths: list[int] = []

    def by_time(fraction: Tensor, valid: Tensor, *, episode: TensorDictBase) -> Tensor:
        assert fraction.shape == valid.shape == episode.batch_size and fraction.dtype == torch.float64
        assert episode[IMAGE].shape == (len(fraction), 3, 2, 2)
        lengths.append(len(fraction))
        return torch.where(valid, (episode[CHUNK_ID] >= 2).long(), -1)

    order = batch[CHUNK_ID].argsort(stable=True)  # rows of an episode need not be neighbours
    assert torch.equal(label_episodes(batch[order], by_time), (batch[order][CHUNK_ID] >= 2).long())
    assert sorted(lengths) == [1, 3, 5, 8]


def test_closed_replaces_the_threshold() -> None:
    batch = make_batch()
    got = label_episodes(batch, closed=lambda action: action[..., -1] > 0, gripper_index=99, close_above=99.0)
    assert torch.equal(got, label_episodes(batch))


def test_chunks_without_an_executed_step_have_no_phase() -> None:
    batch = make_batch()
    batch[IS_PAD][4] = True
    got = label_episodes(batch)
    assert got[4] == -1 and (got[:4] >= 0).all()


def test_empty_batch() -> None:
    batch = make_batch(())
    assert batch[PHASE].shape == (0,)
    assert label_episodes(batch, lambda fraction, valid, episode: fraction).shape == (0,)
    assert len(pad_episodes(batch, 3)) == 0


@pytest.mark.parametrize("gripper_index", [3, -4, 99])
def test_gripper_index_out_of_range(gripper_index: int) -> None:
    with pytest.raises(ValueError, match=rf"gripper_index must lie in \[-3, 2\], got {gripper_index}"):
        label_episodes(make_batch(), gripper_index=gripper_index)


def test_labeller_of_wrong_shape_or_dtype() -> None:
    batch = make_batch()
    with pytest.raises(ValueError, match=r"must return int64 \(4, 8\), got torch.int64 \(4,\)"):
        label_episodes(batch, lambda fraction, valid: label_phases(fraction)[:, 0])
    with pytest.raises(ValueError, match=r"must return int64 \(4, 8\), got torch.float64"):
        label_episodes(batch, lambda fraction, valid: fraction)
    with pytest.raises(ValueError, match=r"must return int64 \(5,\), got torch.int64 \(4,\)"):
        label_episodes(batch, lambda fraction, valid, episode: label_phases(fraction)[1:])


@pytest.mark.parametrize("key", [CHUNK, IS_PAD, EPISODE])
def test_labels_need_their_keys(key: Any) -> None:
    with pytest.raises(KeyError, match="the batch lacks"):
        label_episodes(make_batch().exclude(key))


@pytest.mark.parametrize("chunks", [8, 11])
def test_pad_episodes_by_loops(chunks: int) -> None:
    batch = make_batch()
    padded = pad_episodes(batch, chunks)
    assert padded.batch_size == (4 * chunks,)
    for i, e in enumerate(batch[EPISODE].unique()):
        mine = batch[batch[EPISODE] == e]
        for k in range(chunks):
            got, source = padded[i * chunks + k], mine[min(k, len(mine) - 1)]
            padding = k >= len(mine)
            for key in (CHUNK, EPISODE, GROUP, SUCCESS, IMAGE):
                assert torch.equal(got[key], source[key])
            assert torch.equal(got[IS_PAD], source[IS_PAD] | padding)
            assert got[PHASE] == (-1 if padding else source[PHASE])
            assert got[CHUNK_ID] == k


def test_padding_changes_no_label_and_not_its_input() -> None:
    batch = make_batch()
    before = batch.clone()
    padded = pad_episodes(batch, 10)
    assert torch.equal(label_episodes(padded), padded[PHASE])
    assert (batch == before).all()


def test_padding_of_interleaved_episodes_and_optional_keys() -> None:
    batch = make_batch().exclude(PHASE, CHUNK_ID)
    order = torch.arange(len(batch)).flip(0)
    padded = pad_episodes(batch[order], 8)
    assert padded[EPISODE].tolist() == [e for e in (0, 10, 20, 30) for _ in range(8)]
    assert PHASE not in padded.keys() and CHUNK_ID not in padded.keys()
    # rows of an episode keep their order, here the reversed one
    assert torch.equal(padded[CHUNK][0], batch[CHUNK][4])


def test_padding_keeps_non_tensors() -> None:
    batch = make_batch()
    batch[INSTRUCTION] = "pick up the bowl"
    assert pad_episodes(batch, 8)[INSTRUCTION] == "pick up the bowl"


def test_padding_to_fewer_slots() -> None:
    with pytest.raises(ValueError, match="an episode has 8 chunks, more than the 7 slots"):
        pad_episodes(make_batch(), 7)


def test_check_batch() -> None:
    batch = make_batch()
    check_batch(batch)
    with pytest.raises(ValueError, match=r"batch of rows \[M\].*\(17, 1\)"):
        check_batch(batch.unsqueeze(1))
    with pytest.raises(KeyError, match=r"\('vla_action', 'chunk'\), 'success'"):
        check_batch(batch.exclude(CHUNK, SUCCESS))
    check_batch(batch.exclude(CHUNK), (IS_PAD, EPISODE))
    wrong = batch.clone()
    wrong[IS_PAD] = wrong[IS_PAD][:, 1:]
    with pytest.raises(ValueError, match=r"action_is_pad must be bool \(17, 4\), got torch.bool \(17, 3\)"):
        check_batch(wrong)


def test_padding_rows_pay_nothing_and_carry_no_weight() -> None:
    batch = TensorDict(
        {
            "episode_id": torch.tensor([0, 0, 1]),
            "action_is_pad": torch.zeros(3, 2, dtype=torch.bool),
            "weight": torch.ones(3),
            ("next", "reward"): torch.tensor([[0.0], [1.0], [1.0]]),
        },
        batch_size=[3],
    )
    padded = pad_episodes(batch, 3)
    assert padded["next", "reward"].squeeze(-1).tolist() == [0, 1, 0, 1, 0, 0]
    assert "weight" not in padded.keys()


@pytest.mark.parametrize("wants_episode", [False, True])
def test_any_labeller_gets_minus_one_for_unexecuted_chunks(wants_episode: bool) -> None:
    batch = TensorDict(
        {
            ("vla_action", "chunk"): torch.zeros(3, 2, 1),
            "action_is_pad": torch.tensor([[False, False], [False, True], [True, True]]),
            "episode_id": torch.zeros(3, dtype=torch.int64),
        },
        batch_size=[3],
    )

    def plain(fraction, valid):
        return torch.zeros_like(fraction, dtype=torch.int64)

    def looking(fraction, valid, episode):
        return plain(fraction, valid)

    assert label_episodes(batch, looking if wants_episode else plain).tolist() == [0, 0, -1]


def test_rows_that_are_not_whole_episodes_in_order_are_refused() -> None:
    batch = make_batch()
    swapped = torch.tensor([1, 0, *range(2, len(batch))])
    doubled = torch.cat([batch, batch])
    for rows in (batch[swapped], batch.flip(0), batch[1:], batch[torch.arange(len(batch)) != 7], doubled):
        with pytest.raises(ValueError, match=r"chunk_id is \d at row \d+, where chunk \d of episode \d+ was expected"):
            label_episodes(rows)
    ends = batch[CHUNK_ID] == torch.tensor([4, 0, 7, 2])[batch[EPISODE] // 10]
    unnumbered = batch.exclude(CHUNK_ID).set(DONE, ends.unsqueeze(-1))
    assert torch.equal(label_episodes(unnumbered), batch[PHASE])
    for rows in (torch.cat([unnumbered, unnumbered]), unnumbered[swapped.flip(0)]):
        with pytest.raises(ValueError, match="goes on after row"):
            label_episodes(rows)
    for rows in (unnumbered[:-1], batch.clone().set(DONE, ends.unsqueeze(-1))[:3]):
        with pytest.raises(ValueError, match=r"ends at row \d+, which is not done"):
            label_episodes(rows)
    interleaved = batch[batch[CHUNK_ID].argsort(stable=True)]
    assert torch.equal(label_episodes(interleaved), interleaved[PHASE])
    apart = torch.cat([batch, batch.clone().set(EPISODE, batch[EPISODE] + 100)])
    assert torch.equal(label_episodes(apart), apart[PHASE])
