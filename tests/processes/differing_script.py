"""What both processes of test_nodes.py do that were started with differing settings or weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from pcm_rl.config import Config, ConfigError, UpdateConfig
from pcm_rl.processes import alike
from pcm_rl.processes.alike import check_alike, check_frozen
from pcm_rl.processes.launch import joined


def refusal(check, *arguments) -> str:
    try:
        check(*arguments)
    except ConfigError as error:
        return str(error)
    return ""


with joined(Config()) as ranks:
    config = Config(threads=1 + ranks.rank, name=f"rank{ranks.rank}")
    assert refusal(check_alike, ranks, config) == ""
    for changed, expected in (
        (replace(config, update=UpdateConfig(lr=1e-3 * (1 + ranks.rank))), "update.lr is 0.001 on process 0 and 0.002"),
        (replace(config, env=replace(config.env, kwargs={"a": 1} if ranks.rank else {})), "env.kwargs.a is None on"),
    ):
        assert refusal(check_alike, ranks, changed).startswith(expected), refusal(check_alike, ranks, changed)
    version, alike._version = alike._version, lambda name: str(ranks.rank) if name == "mujoco" else version(name)
    assert refusal(check_alike, ranks, config) == (
        "mujoco is 0 on process 0 and 1 on process 1; install the same versions on every machine"
    )
    policy = torch.nn.Sequential(torch.nn.Linear(300, 3), torch.nn.BatchNorm1d(3))
    policy[0].requires_grad_(False).weight.fill_(1)
    policy[0].bias.fill_(0)
    assert refusal(check_frozen, ranks, policy) == ""
    policy[1].weight.data.fill_(ranks.rank)  # trained: compared at every save
    assert refusal(check_frozen, ranks, policy) == ""
    policy[0].weight[1:] += 1e-3 * ranks.rank
    assert refusal(check_frozen, ranks, policy).startswith("0.weight is [3, 300]")
    policy[0].weight.fill_(1)
    policy[1].running_mean.fill_(ranks.rank)
    assert refusal(check_frozen, ranks, policy).startswith("1.running_mean is [3]")
