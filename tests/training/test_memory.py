"""What a backward pass keeps, and the decision that rests on it. The meter by hand stands in ``test_profile.py``."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pcm_rl.config import Config, EnvConfig, PolicyConfig, SelectionConfig, UpdateConfig
from pcm_rl.training import memory as activation
from pcm_rl.training.memory import ROOM, ActivationMeter, available_bytes, micro_batch_rows, wants_checkpointing

TEXTS = ["lift it", "put the bowl on the plate", "go"]


def run(**update):
    return dataclasses.replace(Config(groups=2, group_size=4), update=UpdateConfig(**update))


def test_a_disabled_meter_counts_nothing():
    layer = nn.Linear(4, 4)
    with ActivationMeter(layer, enabled=False) as meter:
        layer(torch.randn(2, 4)).relu().sum().backward()
    assert meter.peak == 0


def test_views_of_one_storage_count_once():
    layer = nn.Linear(6, 6, bias=False)
    x = torch.randn(4, 6)
    with ActivationMeter(layer) as meter:
        (layer(x).sum() + layer(x[:2]).sum()).backward()
    assert meter.peak == 4 * 6 * 4


def test_rows_of_a_micro_batch(make_openvla, record_openvla):
    policy = make_openvla()
    row = record_openvla(policy, TEXTS)
    length = int(policy.row_tokens(row)[2])  # the shortest prompt: most rows
    assert micro_batch_rows(policy, row, run(micro_rows=5)) == 5
    assert micro_batch_rows(policy, row, run(micro_tokens=3 * length + 1)) == 3
    assert micro_batch_rows(policy, row, run(minibatches=5)) == 20, "2 x 4 trajectories of 12 chunks: 96 in 5 parts"
    full = dataclasses.replace(run(minibatches=4), selection=SelectionConfig(name="none"), env=EnvConfig(max_chunks=10))
    assert micro_batch_rows(policy, row, full) == 20, "2 x 4 trajectories of 10 chunks, in 4 parts"


@pytest.mark.parametrize(("wish", "answer"), [("always", True), ("never", False)])
def test_a_wish_is_followed(make_openvla, record_openvla, wish, answer):
    policy = make_openvla()
    config = dataclasses.replace(Config(), policy=PolicyConfig(checkpointing=wish))
    assert wants_checkpointing(policy, record_openvla(policy, TEXTS), config) == (
        answer, f"policy.checkpointing={wish}",
    )  # fmt: skip


def test_auto_compares_a_micro_batch_with_the_free_memory(make_openvla, record_openvla, monkeypatch):
    policy = make_openvla()
    policy.model.requires_grad_()
    rows = record_openvla(policy, TEXTS)
    with ActivationMeter(policy) as meter:
        policy.get_dist(rows[:1].select(*policy.in_keys)).log_prob(rows[:1]["vla_action", "tokens"]).sum().backward()
    policy.zero_grad(set_to_none=True)
    need = 7 * meter.peak
    config = run(micro_rows=7)
    for free, expected in ((need / ROOM * 1.01, False), (need / ROOM * 0.99, True)):
        monkeypatch.setattr(activation, "available_bytes", lambda device, free=free: free)
        answer, reason = wants_checkpointing(policy, rows, config)
        assert answer is expected
        assert f"a micro-batch of 7 rows keeps {need / 2**30:.2f} GiB" in reason
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_free_memory_is_that_of_the_machine():
    assert 2**20 < available_bytes(torch.device("cpu")) < 2**50
