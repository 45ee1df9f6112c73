from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from pcm_rl.config import METHODS, AdvantageConfig, Config, EnvConfig, Method, SelectionConfig, UpdateConfig
from pcm_rl.episodes import pad_episodes
from pcm_rl.training.memory import ActivationMeter
from pcm_rl.training.update_cost import compared_methods, profile_update

LENGTHS, SUCCESS, GROUP = [15, 14, 3, 16], [1, 0, 1, 0], [0, 0, 0, 0]


def test_meter_counts_each_saved_storage_once_and_no_parameter():
    layer = nn.Linear(10, 20, bias=False).double()
    x = torch.randn(5, 10, dtype=torch.float64)
    with ActivationMeter(layer) as meter:
        layer(x).relu().sum().backward()  # keeps x and the output of relu; the weight is a parameter
    assert meter.peak == 5 * 10 * 8 + 5 * 20 * 8


def test_meter_takes_the_largest_pass_not_the_sum():
    layer = nn.Linear(10, 20, bias=False)
    with ActivationMeter(layer) as meter:
        for rows in (3, 7, 5):
            layer(torch.randn(rows, 10)).relu().sum().backward()
    assert meter.peak == 7 * 30 * 4


def test_rows_and_memory_of_every_method(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    config = dataclasses.replace(Config(), env=EnvConfig(max_chunks=16), update=UpdateConfig(minibatches=1))
    before = copy.deepcopy(policy.state_dict())
    methods = {name: METHODS[name] for name in ("pcm", "random-valid", "full-valid", "full-padded")}
    costs = {cost.method: cost for cost in profile_update(policy, batch, config, methods=methods, repeats=1)}
    assert [costs[m].rows for m in methods] == [39, 39, 48, 64]  # sum of min(12, N), of N, and 4 x 16
    memory = [costs[m].activation_bytes for m in methods]
    assert memory[0] == memory[1] < memory[2] < memory[3]
    assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())


def test_no_more_memory_than_there_is_room_for_and_whole_groups(policy, make_batch):
    lengths, groups = [5, 9, 4, 7, 6, 8], [4, 4, 2, 2, 7, 7]
    batch = make_batch(policy, lengths, [1, 0] * 3, groups)
    config = dataclasses.replace(Config(), env=EnvConfig(max_chunks=16), update=UpdateConfig(minibatches=1))

    def rows(room):
        costs = profile_update(policy, batch, config, repeats=0, room=room)
        return {cost.method: cost.rows for cost in costs}["full-valid"], max(cost.activation_bytes for cost in costs)

    everything, padded = rows(None)
    assert rows(10**12) == (everything, padded) and everything == sum(lengths)
    found = [rows(room)[0] for room in (1, padded, 2 * padded)]
    assert found[0] == 14 and found == sorted(found) and set(found) <= {14, 25, 39}
    assert rows(padded)[1] < padded


@pytest.mark.parametrize(
    ("selection", "names", "rows"),
    [
        (SelectionConfig("random", budget=5), ["random-valid", "full-valid", "full-padded"], [18, 48, 64]),
        (SelectionConfig("none", padding="keep"), ["full-padded", "full-valid"], [64, 48]),
        (SelectionConfig("random", padding="keep"), ["random-keep-group", "full-valid", "full-padded"], [48, 48, 64]),
    ],
)
def test_the_methods_of_a_run_begin_with_its_own(policy, make_batch, selection, names, rows):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    config = dataclasses.replace(Config(), env=EnvConfig(max_chunks=16), selection=selection)
    costs = profile_update(policy, batch, config, repeats=0)
    assert [cost.method for cost in costs] == names and [cost.rows for cost in costs] == rows


def test_a_method_keeps_its_advantage():
    config = dataclasses.replace(
        Config(), selection=SelectionConfig("top-advantage"), advantage=AdvantageConfig("critic")
    )
    assert next(iter(compared_methods(config).items())) == ("top-critic", METHODS["top-critic"])


def test_a_method_needs_no_name_of_ours(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    config = dataclasses.replace(Config(), env=EnvConfig(max_chunks=16))
    (cost,) = profile_update(policy, batch, config, methods={"mine": Method("random", "keep")}, repeats=0)
    assert (cost.method, cost.rows) == ("mine", 48)


def test_memory_follows_micro_rows(policy, make_batch):
    batch = pad_episodes(make_batch(policy, LENGTHS, SUCCESS, GROUP), 16)
    peak = []
    for micro_rows in (8, 16):
        update = UpdateConfig(minibatches=1, micro_rows=micro_rows)
        config = dataclasses.replace(Config(), env=EnvConfig(max_chunks=16), update=update)
        (cost,) = profile_update(policy, batch, config, methods={"full-padded": METHODS["full-padded"]}, repeats=1)
        peak.append(cost.activation_bytes)
    assert peak[1] == pytest.approx(2 * peak[0], rel=0.05)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 1), (1e9, 3)])
def test_where_updates_are_slow_the_warm_up_is_all(policy, make_batch, monkeypatch, seconds, rounds):
    updates = []
    monkeypatch.setattr("pcm_rl.training.update_cost.update_policy", lambda *given: updates.append(len(given[2])))
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    config = dataclasses.replace(Config(), env=EnvConfig(max_chunks=16))
    costs = profile_update(policy, batch, config, repeats=2, seconds=seconds)
    assert updates == [39] + [39, 48, 64] * rounds  # the first is a warm-up that no method pays for
    assert [cost.rows for cost in costs] == [39, 48, 64]
