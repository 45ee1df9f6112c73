"""Chunks of each method, and whole steps."""

from __future__ import annotations

import dataclasses

import pytest

from pcm_rl.config import Config, ConfigError, load_config
from pcm_rl.plan.columns import columns_of
from pcm_rl.plan.costs import Costs, costs_of
from pcm_rl.plan.figures import Card, Episodes, Network, Simulators
from pcm_rl.plan.levers import what_helps
from pcm_rl.plan.step import Workload, plan_steps

NAMES = ["full-padded", "pcm", "pcm:4", "random-valid", "top-advantage:4", "top-critic:4", "full-critic"]
COLUMNS = columns_of(Config(), NAMES)
SIMULATORS, COSTS = Simulators(), costs_of(Card(), Network())


def chunks(workload: Workload, groups: int = 8) -> dict[str, int]:
    return {f"{column.name}:{column.budget}": workload.update_chunks(column, groups) for column in COLUMNS}


def test_chunks_of_the_counted_update():
    found = chunks(Workload())  # as in benchmarks/results/actor_update-7b-count.csv
    assert found["full-valid:12"] == found["full-critic:12"] == 3280 and found["full-padded:12"] == 5120
    assert found["pcm:12"] == found["random-valid:12"] == 960
    assert found["pcm:4"] == found["top-advantage:4"] == found["top-critic:4"] == 320


def test_groups_of_one_outcome_are_left_out_but_count_in_the_budget_of_a_batch():
    found = chunks(Workload(episodes=Episodes(mixed=0.5)))
    assert (found["full-valid:12"], found["pcm:12"], found["pcm:4"]) == (1640, 480, 160)
    assert (found["top-advantage:4"], found["top-critic:4"], found["full-critic:12"]) == (320, 320, 3280)
    none = chunks(Workload(episodes=Episodes(success_rate=1.0)))
    assert none["full-valid:12"] == none["pcm:12"] == none["top-advantage:4"] == 0
    assert none["top-critic:4"] == 320


def test_a_budget_of_all_chunks_keeps_all():
    column = dataclasses.replace(columns_of(Config(), [])[1], budget=64)
    assert Workload().update_chunks(column, 8) == 3280


@pytest.mark.parametrize(
    "episodes", [Episodes(), Episodes(0.9), Episodes(0.3, 11.6, 20.0), Episodes(0.0), Episodes(1.0)]
)
def test_lengths_have_the_means_that_are_given(episodes):
    lengths = episodes.lengths(100)
    mean = episodes.success_rate * episodes.success_chunks + (1 - episodes.success_rate) * episodes.failure_chunks
    assert len(lengths) == 100 and sum(lengths) == pytest.approx(100 * mean, abs=1)
    assert min(lengths) >= 1


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.85])
@pytest.mark.parametrize("mixed", [None, 0.7, 1.0])
def test_groups_with_both_outcomes_and_the_others_have_the_success_of_all(rate, mixed):
    share, within = Episodes(rate, mixed=mixed).in_mixed_groups(6)
    of_one = rate**6 / (rate**6 + (1 - rate) ** 6)
    assert share * within.success_rate + (1 - share) * of_one == pytest.approx(rate)
    assert mixed is not None or share == pytest.approx(1 - rate**6 - (1 - rate) ** 6)


def test_the_parts_of_a_step():
    full, pcm = plan_steps(Workload(), SIMULATORS, COSTS, columns_of(Config(), []), [1])
    assert full.gain == 1.0 and full.rollout_s == pcm.rollout_s
    assert pcm.gain == pytest.approx((full.rollout_s + full.update_s) / (pcm.rollout_s + pcm.update_s))
    assert full.update_s / pcm.update_s == pytest.approx(3280 / 960, rel=0.01)
    assert pcm.card_s == pytest.approx(pcm.seconds / 80)
    assert 1 < pcm.gain < full.update_s / pcm.update_s, "a rollout takes its time by any method"


def test_two_cards_play_as_one_plays_half_and_share_the_update():
    costs = Costs(decision_call_s=0.1, update_row_s=0.5)
    columns = columns_of(Config(), [])
    one, two = (
        plan_steps(Workload(groups=groups), SIMULATORS, costs, columns, [cards]) for groups, cards in ((4, 1), (8, 2))
    )
    assert [step.rollout_s for step in one] == [step.rollout_s for step in two]
    assert [step.update_s for step in one] == pytest.approx([step.update_s for step in two])
    assert [step.card_s for step in one] == pytest.approx([step.card_s for step in two])


def test_more_cards_than_groups_play_more():
    eight, sixteen = plan_steps(Workload(), SIMULATORS, COSTS, columns_of(Config(), [])[:1], [8, 16])
    assert (eight.trajectories, sixteen.trajectories) == (80, 160)
    assert eight.seconds == pytest.approx(sixteen.seconds)


@pytest.mark.parametrize(
    ("simulators", "costs", "binds"),
    [
        (Simulators(1.0, 0.0), Costs(), "simulators"),
        (Simulators(0.0, 0.0), Costs(decision_call_s=1.0), "decisions"),
        (Simulators(0.1, 0.0), Costs(decision_call_s=0.01, update_row_s=1.0), "update"),
    ],
)
def test_what_binds(simulators, costs, binds):
    assert {step.binds for step in plan_steps(Workload(), simulators, costs, COLUMNS[:2], [1])} == {binds}


def test_what_helps_is_the_plan_with_one_change():
    pcm = columns_of(Config(), [])[1]
    found = {lever.what: lever.seconds for lever in what_helps(Workload(), SIMULATORS, COSTS, pcm, 1)}
    half = COSTS.update_s(960, minibatches=4) / 2
    assert found["as it is"] - found["an update twice as fast"] == pytest.approx(half)
    assert found["as it is"] - found["a budget of 6 instead of 12"] == pytest.approx(half, rel=0.02)
    assert max(found.values()) == found["as it is"]
    assert not any("budget" in lever.what for lever in what_helps(Workload(), SIMULATORS, COSTS, COLUMNS[0], 1))


def test_environments_in_one_process_stay_together_when_there_are_more():
    together = Simulators(0.01, 0.0, 0.0, workers=4, cores=1, in_step=True)
    costs = Costs(decision_call_s=1.0)
    found = {lever.what: lever.seconds for lever in what_helps(Workload(), together, costs, COLUMNS[1], 1)}
    assert found["twice as many environments on the same cores"] < 0.7 * found["as it is"]  # half as many calls


def test_columns_are_each_there_once():
    shown = [(column.name, column.budget) for column in columns_of(Config(), ["pcm", "pcm:12", "pcm:6", "full-valid"])]
    assert shown == [("full-valid", 12), ("pcm", 12), ("pcm", 6)]
    alone = load_config(None, ["group_size=1", "advantage.name=critic", "selection.name=top-advantage"])
    assert [column.name for column in columns_of(alone)] == ["full-critic", "top-critic", "top-critic"]
    with pytest.raises(ConfigError, match="group_size=1"):
        columns_of(alone, ["pcm"])


def test_own_rules_have_their_kind_of_budget():
    config = load_config(None, ["selection.name=pcm_rl.rules:top_phase"])
    own = columns_of(config, [])[1]
    assert own.name.startswith("pcm_rl.rules:top_phase") and Workload().update_chunks(own, 8) == 960


def test_a_step_that_would_take_forever_is_refused():
    for workload in (Workload(groups=10**9), Workload(episodes=Episodes(failure_chunks=1e9))):
        with pytest.raises(ConfigError, match="a plan plays at most"):
            plan_steps(workload, SIMULATORS, COSTS, COLUMNS[:1], [1])
