"""Phase rules without a gripper, against labels worked out by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict

from pcm_rl import Phase
from pcm_rl.episodes import CHUNK, EPISODE, IS_PAD, STATE, label_episodes
from pcm_rl.labellers import IN_ORDER_OF_TIME, label_by_distance, label_by_time

GRIP, PRE, RELEASE, APPROACH, TAIL = (int(phase) for phase in Phase)


def rows(distances: list[float], executed: list[bool] | None = None) -> TensorDict:
    """An episode whose object lies ``distances`` from the hand, along y."""
    count = len(distances)
    state = torch.zeros(count, 8)
    state[:, 5] = -torch.tensor(distances)
    return TensorDict(
        {
            STATE: state,
            CHUNK: torch.zeros(count, 2, 4),
            IS_PAD: ~torch.tensor(executed or [True] * count).unsqueeze(-1).expand(count, 2),
            EPISODE: torch.zeros(count, dtype=torch.int64),
        },
        batch_size=[count],
    )


def test_periods_of_two_chunks():
    valid = torch.tensor([[True] * 11, [True] * 5 + [False] * 6])
    assert label_by_time(torch.zeros(2, 11), valid).tolist() == [
        [APPROACH, APPROACH, PRE, PRE, GRIP, GRIP, RELEASE, RELEASE, TAIL, TAIL, TAIL],
        [APPROACH, APPROACH, PRE, PRE, GRIP] + [-1] * 6,
    ]


def test_five_periods_whatever_their_length():
    valid = torch.ones(7, dtype=torch.bool)
    assert label_by_time(torch.ones(7), valid, chunks=1).tolist() == [*map(int, IN_ORDER_OF_TIME), TAIL, TAIL]
    assert set(IN_ORDER_OF_TIME) == set(Phase)
    assert label_by_time(torch.zeros(0), valid[:0]).tolist() == []


def test_nearness_stands_in_for_the_gripper():
    # near 0.8, far 2.0: nearness 0 (2.5), .25 (1.7), .25, .5 (1.4), 1 (0.5), 1, .25, 0, 0, 0, 0
    distances = [2.5, 1.7, 1.7, 1.4, 0.5, 0.5, 1.7, 2.5, 2.5, 2.5, 2.5]
    expected = [APPROACH, PRE, PRE, GRIP, GRIP, GRIP, RELEASE, RELEASE, RELEASE, TAIL, TAIL]
    assert label_episodes(rows(distances), label_by_distance).tolist() == expected


def test_never_near_is_all_approach_and_chunks_never_executed_have_no_phase():
    batch = rows([3.0, 3.0, 0.1], [True, True, False])
    assert label_episodes(batch, label_by_distance).tolist() == [APPROACH, APPROACH, -1]


def test_units_and_place_in_the_state_are_arguments():
    batch = rows([25.0, 5.0])
    rule = partial(label_by_distance, offset=slice(5, 6), near=8.0, far=20.0)
    assert label_episodes(batch, rule).tolist() == [APPROACH, GRIP]


def test_the_outcome_is_not_looked_at():
    batch = rows([2.5, 1.0, 0.5])
    labels = [label_episodes(batch.set("success", torch.full((3,), won)), label_by_distance) for won in (True, False)]
    assert torch.equal(*labels)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: label_by_time(torch.zeros(3), torch.ones(2, dtype=torch.bool)),
            ValueError,
            r"bool \(3,\), got torch.bool \(2,\)",
        ),
        (lambda: label_by_time(torch.zeros(3), torch.ones(3, dtype=torch.bool), chunks=0), ValueError, "at least 1"),
        (lambda: label_episodes(rows([1.0]), partial(label_by_distance, near=2.0)), ValueError, "near < far"),
        (lambda: label_episodes(rows([1.0]), partial(label_by_distance, offset=slice(9, 12))), ValueError, "8 entries"),
        (lambda: label_episodes(rows([1.0]).exclude(STATE), label_by_distance), KeyError, "needs a state"),
        (lambda: label_episodes(rows([float("nan")]), label_by_distance), ValueError, "NaN"),
    ],
)
def test_what_does_not_fit_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call()
