"""Rollouts whose seconds can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pcm_rl.plan.costs import Costs
from pcm_rl.plan.figures import Simulators
from pcm_rl.plan.rollout import play

FREE = Costs()
CALL = Costs(decision_call_s=1.0, decision_row_s=1.0)


def steady(chunk_s: float = 2.0, reset_s: float = 1.0, **changes: Any) -> Simulators:
    return Simulators(chunk_s, reset_s, spread=0.0, **{"workers": 2, "cores": 2, **changes})


def test_one_worker_does_everything_one_after_the_other():
    lengths = [3, 5, 1]
    found = play(lengths, steady(workers=1), CALL)
    assert found.seconds == pytest.approx(3 * 1.0 + 9 * (2.0 + 2.0))
    assert (found.calls, found.rows, found.deciding, found.playing) == (9, 9, 18.0, 21.0)


def test_a_free_card_leaves_the_simulators():
    lengths = [3, 5, 1, 7]
    assert play(lengths, steady(workers=4, cores=4), FREE).seconds == 1.0 + 7 * 2.0  # the longest episode
    assert play(lengths, steady(workers=4, cores=1), FREE).seconds == 4 * 1.0 + 16 * 2.0  # one core plays all
    assert play(lengths, steady(workers=9, cores=9), FREE).seconds == 1.0 + 7 * 2.0  # some have no episode


def test_free_simulators_leave_the_card():
    found = play([4, 4, 4], steady(0.0, 0.0, workers=3, cores=3), CALL)
    assert (found.seconds, found.calls) == (4 * (1.0 + 3.0), 4)


def test_two_episodes_of_one_chunk_by_hand():
    # both reset until 1, are decided for until 4, and play until 6
    assert play([1, 1], steady(), CALL).seconds == 6.0
    # on one core: resets until 1 and 2; decisions from 1 to 3 and from 3 to 5; chunks from 3 to 5 and from 5 to 7
    assert play([1, 1], steady(cores=1), CALL).seconds == 7.0
    # in step: resets until 2, one decision until 5, chunks until 7 and 9
    assert play([1, 1], steady(cores=1, in_step=True), CALL).seconds == 9.0


def test_a_fixed_number_of_rows_by_hand():
    # filled up: resets until 1 and 2; a decision of two rows for each of them, from 1 to 4 and from 4 to 7; until 9
    found = play([1, 1], steady(cores=1, decisions=2), CALL)
    assert (found.seconds, found.calls, found.rows) == (9.0, 2, 2)
    # whoever resets first waits for the other: one decision from 2 to 5, chunks until 7 and 9
    found = play([1, 1], steady(cores=1, decisions=2, decision_wait=1.5), CALL)
    assert (found.seconds, found.calls) == (9.0, 1)
    # not long enough: one from 1.5 to 4.5; the other came at 2, is heard at 4.5, waits until 5, and plays from 8 to 10
    found = play([1, 1], steady(cores=1, decisions=2, decision_wait=0.5), CALL)
    assert (found.seconds, found.calls) == (10.0, 2)
    # three wait and a decision is for two: from 1 to 4 and from 4 to 7
    found = play([1, 1, 1], steady(workers=3, cores=3, decisions=2), CALL)
    assert (found.seconds, found.calls, found.rows) == (9.0, 2, 3)


def test_nobody_waits_for_those_who_have_ended():
    for changes in ({"in_step": True}, {"decisions": 3, "decision_wait": 1e9}):
        found = play([1, 1, 6], steady(workers=3, cores=3, **changes), CALL)
        assert found.rows == 8 and found.calls == 6  # all three once, then the last one alone


def test_the_next_episode_starts_where_one_has_ended():
    # 5 chunks on one worker; the other plays 1, 1 and 1 meanwhile
    assert play([5, 1, 1, 1], steady(), FREE).seconds == 1.0 + 5 * 2.0


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_times_vary_around_their_mean_and_are_the_same_every_time(workers):
    lengths = [10, 20] * 20
    varied = Simulators(2.0, 1.0, spread=0.25, workers=workers, cores=8)
    found = play(lengths, varied, CALL)
    assert found == play(lengths, varied, CALL)
    assert found.playing == pytest.approx(600 * 2.0 + 40, rel=0.03) and found.rows == 600


def test_no_episode_takes_no_time():
    assert play([], steady(), CALL).seconds == 0.0
