from __future__ import annotations

import pytest

from pcm_rl.config import ConfigError
from pcm_rl.rollouts.initial_states import InitialStates


def test_finite_set_is_split_and_dealt_epoch_by_epoch():
    states = InitialStates(50, 10, seed=3)
    evaluation, training = set(states.evaluation.tolist()), set(states.training().tolist())
    assert evaluation | training == set(range(50)) and not evaluation & training and len(evaluation) == 10
    dealt = states.deal(40).tolist() + states.deal(80).tolist()
    for epoch in (dealt[:40], dealt[40:80], dealt[80:]):
        assert set(epoch) == training
    assert dealt[:40] != dealt[40:80]
    assert InitialStates(50, 10, seed=4).evaluation.tolist() != states.evaluation.tolist()


@pytest.mark.parametrize("total", [50, None])
def test_cursor_continues_the_sequence(total):
    whole = InitialStates(total, 10, seed=1)
    expected = [whole.deal(7).tolist() for _ in range(12)]
    first = InitialStates(total, 10, seed=1)
    for _ in range(5):
        first.deal(7)
    second = InitialStates(total, 10, seed=1)
    second.load_state_dict(first.state_dict())
    assert [second.deal(7).tolist() for _ in range(7)] == expected[5:]


def test_unlimited_states_never_meet_evaluation_or_repeat():
    states = InitialStates(None, 256, seed=2)
    dealt = states.deal(1000).tolist()
    assert len(set(dealt)) == 1000
    assert not set(dealt) & set(states.evaluation.tolist())


def test_something_must_stay_for_training():
    with pytest.raises(ValueError, match="hold out"):
        InitialStates(50, 50)


def test_a_policy_that_saw_the_held_out_states_is_refused():
    first, other = InitialStates(50, 10, seed=0), InitialStates(50, 10, seed=1)
    held_out = first.describe()["evaluation"]
    first.check_start(held_out)
    first.check_start(None)
    with pytest.raises(ConfigError, match="seed 1 holds out"):
        other.check_start(held_out)
    InitialStates(None, 10, seed=1).check_start("0-9")  # unlimited states: evaluation is the same for every seed


def test_what_is_described_is_what_is_dealt():
    states = InitialStates(None, 10, seed=2)
    assert states.describe() == {"train": "unlimited, from 2000010 on", "evaluation": "0-9"}
    assert states.deal(1).tolist() == [2000010]
    with pytest.raises(ConfigError, match="and 5 more"):
        InitialStates(None, 20, seed=2).check_start(states.describe()["evaluation"])


def test_tasks_take_turns_and_hold_out_the_same_states():
    alone, states = InitialStates(50, 10, seed=3), InitialStates(50, 10, seed=3, tasks=4)
    held_out = alone.evaluation.tolist()
    assert states.evaluation.tolist() == [50 * task + state for state in held_out for task in range(4)]
    dealt = states.deal(4 * 40)
    assert states.task_of(dealt).tolist() == list(range(4)) * 40
    for task in range(4):
        mine = dealt[task::4]
        assert sorted(mine.tolist()) == states.training(task).tolist() == (alone.training() + 50 * task).tolist()
    assert (dealt[0::4]).tolist() == alone.deal(40).tolist()  # task 0 is dealt as if it were alone
    assert dealt[1::4].sub(50).tolist() != dealt[0::4].tolist()
    assert states.describe() == alone.describe()
    with pytest.raises(ValueError, match="4 tasks need a number"):
        InitialStates(None, 10, tasks=4)
