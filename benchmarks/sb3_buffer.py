"""Stable-Baselines3's PPO on the toy, with its own rollout buffer and with ours, on one thread in one process.

    python benchmarks/sb3_buffer.py [--steps N] [--seeds 0,1,2] [--budgets 5]

writes ``results/sb3_buffer-update.csv``, the seconds of ``train()`` on rollouts from equal weights, trials interleaved,
and ``results/sb3_buffer.csv``, success on 256 held-out initial states against environment steps. Everything else is as
in ``peers.py`` with ``sb3-tokens-start``: a rollout has 32 decisions in each of 80 environments, so that a budget of 5
keeps about a fifth. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from common import medians, write_csv
from peers_ours import Weights, configure, supervised
from peers_run import train
from peers_sb3 import SB3Peer

from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.training.build import make_policy


def name_of(budget: int | None) -> str:
    """``all`` for PPO's own buffer."""
    return "all" if budget is None else f"pcm-b{budget}"


def make_peer(budget: int | None, seed: int, start: Weights) -> SB3Peer:
    """PPO at its start, with its own buffer or with ours."""
    config = configure("full-valid", seed)
    torch.manual_seed(seed)
    env, deal = make_vector_env(config.env), InitialStates.of(config).deal
    policy = make_policy(config, env)
    policy.load_state_dict(start)
    return SB3Peer(policy, env, deal, tokens=True, start=True, seed=seed, budget=budget)


def update_table(budgets: list[int | None], seed: int, start: Weights, repeats: int) -> list[dict[str, object]]:
    """``train()`` on each one's first rollout, always from the same weights."""
    trials: dict[str, Callable[[], object]] = {}
    rows: dict[str, int] = {}
    for budget in budgets:
        peer = make_peer(budget, seed, start)
        update, peer.update = peer.update, lambda: None
        peer.advance()  # the rollout only
        rows[name_of(budget)] = sum(len(batch.actions) for batch in peer.model.rollout_buffer.get(256))
        trials[name_of(budget)] = from_equal_weights(peer, update)
    seconds = medians(trials, repeats, twice=True, clock=time.process_time)
    return [
        {
            "buffer": name,
            "rows": rows[name],
            "seconds": round(seconds[name], 3),
            "time_of_all_over_this": round(seconds["all"] / seconds[name], 2),
        }
        for name in trials
    ]


def from_equal_weights(peer: SB3Peer, update: Callable[[], object]) -> Callable[[], None]:
    """An update that starts from the weights and the optimiser of now."""
    policy, optimizer = copy.deepcopy(peer.model.policy.state_dict()), peer.model.policy.optimizer
    state = copy.deepcopy(optimizer.state_dict())

    def run() -> None:
        peer.model.policy.load_state_dict(policy)
        optimizer.load_state_dict(copy.deepcopy(state))
        update()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps of every buffer and seed")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budgets", default="5")
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="timed trials of train(), after a warm-up")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    budgets: list[int | None] = [None, *map(int, options.budgets.split(","))]
    starts = {seed: supervised(seed) for seed in seeds}
    write_csv("sb3_buffer-update", update_table(budgets, seeds[0], starts[seeds[0]], options.repeats))
    rows: list[dict[str, object]] = []
    for seed in seeds:
        for budget in budgets:
            name, peer = name_of(budget), make_peer(budget, seed, starts[seed])
            curve = train(name, peer, seed, options.steps, options.steps // options.evaluations)
            rows += [{"buffer": name, **row} for row in curve]
            write_csv("sb3_buffer", rows, quiet=True)  # an interrupted run keeps what it has


if __name__ == "__main__":
    main()
