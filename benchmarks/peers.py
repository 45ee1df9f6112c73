"""Other trainers beside ours, on the same toy with the same policy, in one run on one thread.

    python benchmarks/peers.py                                   both tables below; needs stable-baselines3
    python benchmarks/peers.py update                            writes results/peers-update.csv
    python benchmarks/peers.py training [--steps N] [--seeds 0,1] [--peers pcm,torchrl]
                                        writes results/peers-training.csv (every evaluation) and peers-summary.csv

``update``: one update on one and the same batch of pick and place (groups with both outcomes, collected with the
supervised policy of ``configs/pick_place.yaml``), by our methods and by TorchRL's recipe; trials interleaved.

``training``: success on 256 held-out initial states against environment steps and against seconds of rollouts and
updates (evaluations left out), until ``--steps`` environment steps are done. Peers:

- ``full-valid``, ``pcm`` (B = 12), ``top-advantage`` (B = 8), ``top-critic`` (B = 4): our trainer;
- ``torchrl``: TorchRL's recipe, an optimiser step for every 64 decisions, with our learning rate of 3e-4;
  ``torchrl-3e-5``: with the best of 3e-4, 1e-4 and 3e-5 on seed 0; ``torchrl-4``: with four optimiser steps a pass, as
  ours has (``peers_torchrl.py``); ``full-valid-64``: ours with a step for every 64 decisions;
- ``sb3-tokens-start``, ``sb3-tokens``, ``sb3-box``: Stable-Baselines3's PPO (``peers_sb3.py``) from the supervised
  weights, and from scratch.

All but the last two start from the same supervised policy. Everything runs in one process on one thread, and seconds
are its processor time, which other work on the machine changes less than the wall-clock.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from common import medians, write_csv
from peers_sb3 import SB3Peer
from peers_torchrl import DECISIONS, RecipePeer, RecipeUpdate
from tensordict import TensorDictBase
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.algos import PCMSampler
from pcm_rl.config import METHODS, Config, load_config
from pcm_rl.episodes import ADVANTAGE, pad_episodes
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.rollouts.evaluate import evaluate
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.training.build import make_policy
from pcm_rl.training.grpo import make_loss, make_optimizer, update_policy
from pcm_rl.training.trainer import EVALUATION_SEED, Trainer

CONFIG = Path(__file__).parent.parent / "configs" / "pick_place.yaml"
OURS = ("full-padded", "full-valid", "pcm", "top-advantage")
TORCHRL: dict[str, dict[str, Any]] = {"torchrl": {}, "torchrl-3e-5": {"lr": 3e-5}, "torchrl-4": {"steps": 4}}
SB3 = {
    "sb3-tokens-start": {"tokens": True, "start": True},
    "sb3-tokens": {"tokens": True, "start": False},
    "sb3-box": {"tokens": False, "start": False},
}
BUDGETS = {"top-advantage": 8, "top-critic": 4}  # for the whole batch; the others have the recipe's 12
PEERS = ("full-valid", "full-valid-64", "pcm", "top-advantage", "top-critic", *TORCHRL, *SB3)
DEFAULT = tuple(name for name in PEERS if name != "sb3-tokens")  # from scratch no success either, at thrice the price
GOOD = 0.7  # success whose price in steps and seconds the summary gives
Weights = dict[str, Any]


def configure(method: str, seed: int) -> Config:
    """The recipe of pick and place by one of our methods."""
    budget = [f"selection.budget={BUDGETS[method]}"] if method in BUDGETS else []
    always = [f"seed={seed}", "logger=none", "record=false", "threads=1"]
    return load_config(CONFIG, [*METHODS[method].overrides(), *budget, *always])


def quiet(line: str) -> None:
    """What a trainer says of itself is not shown."""


def supervised(seed: int) -> Weights:
    """Weights of the supervised policy that all peers of a seed start from."""
    trainer = Trainer(configure("full-valid", seed), quiet)
    trainer.supervised_start()
    trainer.env.close()
    return weights(trainer.policy)


# -- one update -------------------------------------------------------------------------------------------------------


def update_table(seed: int, repeats: int) -> list[dict[str, object]]:
    """Rows, optimiser steps and seconds of an update of every kind on one batch."""
    trainer = Trainer(configure("full-valid", seed), quiet)
    trainer.supervised_start()
    collected = trainer.collect()
    batch = collected[trainer.grpo.write_advantage(collected)]
    trials: dict[str, Callable[[], object]] = {}
    rows: dict[str, int] = {}
    steps: dict[str, int] = {}
    for method in OURS:
        config = configure(method, seed)
        chosen = config.selection
        sampler = PCMSampler(chosen.budget, selection=chosen.name, padding=chosen.padding)
        kept = sampler(pad_episodes(batch, config.env.slots) if chosen.padding == "keep" else batch)
        rows[method], steps[method] = len(kept), config.update.minibatches
        trials[method] = our_update(copy.deepcopy(trainer.policy), config, kept)
    for name in ("torchrl", "torchrl-4"):
        learner = RecipeUpdate(copy.deepcopy(trainer.policy), trainer.config, **TORCHRL[name])
        rows[name], steps[name] = len(batch), learner.steps or -(-len(batch) // DECISIONS)
        trials[name] = recipe_update(learner, batch)
    seconds = medians(trials, repeats, twice=True, clock=time.process_time)
    return [
        {
            "update": name,
            "rows": rows[name],
            "optimizer_steps": steps[name],
            "seconds": round(seconds[name], 4),
            "us_per_row": round(seconds[name] / rows[name] * 1e6, 1),
            "time_over_pcm": round(seconds[name] / seconds["pcm"], 2),
        }
        for name in trials
    ]


def our_update(policy: VLAWrapperBase, config: Config, kept: TensorDictBase) -> Callable[[], object]:
    """An update by this package, always from the same weights."""
    loss, optimizer, start = make_loss(policy, config.update), make_optimizer(policy, config.update), weights(policy)

    def run() -> None:
        policy.load_state_dict(start)
        update_policy(loss, optimizer, kept, config.update, torch.Generator().manual_seed(0))

    return run


def recipe_update(learner: RecipeUpdate, batch: TensorDictBase) -> Callable[[], object]:
    """A pass by TorchRL's recipe from the same weights; what a pass has consumed is offered again before the next."""
    start = weights(learner.policy)
    learner.buffer.extend(batch.exclude(ADVANTAGE))
    assert len(learner.buffer) == len(batch), "the recipe must keep the same groups"

    def run() -> None:
        learner.policy.load_state_dict(start)
        learner.buffer.mark_update(torch.arange(len(batch)))
        assert learner.run() == len(batch)

    return run


# -- training ---------------------------------------------------------------------------------------------------------


class Peer(Protocol):
    """What trains.

    Attributes:
        policy: For evaluations.
        update: What follows a rollout; replaced by a timed one.
    """

    policy: Any
    update: Callable[..., Any]

    def advance(self) -> int:
        """Train a little; environment steps done."""


class OurPeer:
    """Our trainer without its folder, report and films.

    Args:
        config: The run.
        start: Weights.
        rows: Rows of a minibatch; None takes the configuration's number of minibatches.
    """

    def __init__(self, config: Config, start: Weights, rows: int | None) -> None:
        self.trainer, self.rows = Trainer(config, quiet), rows
        self.trainer.policy.load_state_dict(start)
        self.policy = self.trainer.policy
        self.update: Callable[..., Any] = self._update
        self.trainer.grpo.update = lambda kept: self.update(kept)  # type: ignore[method-assign]

    def _update(self, kept: TensorDictBase) -> dict[str, float]:
        own = self.trainer.grpo
        number = own.config.update.minibatches if self.rows is None else -(-len(kept) // self.rows)
        update = dataclasses.replace(own.config.update, minibatches=number)
        return update_policy(own.loss, own.optimizer, kept, update, own.generator)

    def advance(self) -> int:
        """One step of the trainer; environment steps done."""
        return int(self.trainer.train_step()["env_steps"])


def make_peer(name: str, seed: int, start: Weights) -> Peer:
    """A peer at its start."""
    method = name.removesuffix(f"-{DECISIONS}")
    config = configure(method if method in METHODS else "full-valid", seed)
    if method in METHODS:
        return OurPeer(config, start, None if name == method else DECISIONS)
    torch.manual_seed(seed)
    env, deal = make_vector_env(config.env), InitialStates.of(config).deal
    policy = make_policy(config, env)
    policy.load_state_dict(start)
    if name in TORCHRL:
        return RecipePeer(policy, config, env, deal, **TORCHRL[name])
    return SB3Peer(policy, env, deal, seed=seed, **SB3[name])


def train(name: str, peer: Any, seed: int, budget: int, evaluations: int) -> list[dict[str, object]]:
    """Train ``peer`` until ``budget`` environment steps are done; a row for each evaluation, without its name."""
    config = configure("full-valid", seed)
    env, held_out = make_vector_env(config.env), InitialStates.of(config).evaluation
    spent = {"all": 0.0, "update": 0.0}
    peer.update = clocked(peer.update, spent, "update")
    advance = clocked(peer.advance, spent, "all")
    rows: list[dict[str, object]] = []
    steps = 0
    while True:
        if steps >= len(rows) * budget / evaluations:
            success = evaluate(env, peer.policy, held_out, config.eval_episodes, seed=EVALUATION_SEED).success
            rows.append(
                {
                    "seed": seed,
                    "env_steps": steps,
                    "seconds": round(spent["all"], 2),
                    "update_seconds": round(spent["update"], 2),
                    "success": success.success,
                    "episodes": success.episodes,
                }
            )
            print(f"{name}, seed {seed}: {steps} steps, {spent['all']:.1f} s, {success}", flush=True)
        if steps >= budget:
            return rows
        steps += advance()


def clocked(call: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    """``call``, with its processor time added to ``spent[name]``."""

    def run(*args: Any) -> Any:
        begun = time.process_time()
        try:
            return call(*args)
        finally:
            spent[name] += time.process_time() - begun

    return run


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """One row a peer: means over seeds, seconds against ``full-valid``'s where it was run."""
    table: list[dict[str, object]] = []
    for name in dict.fromkeys(row["peer"] for row in rows):
        seeds = dict.fromkeys(row["seed"] for row in rows if row["peer"] == name)
        runs = [[row for row in rows if (row["peer"], row["seed"]) == (name, seed)] for seed in seeds]
        ends = [run[-1] for run in runs]
        good = [next((row for row in run if row["success"] >= GOOD), None) for run in runs]
        reached = [row for row in good if row is not None]
        after = torch.tensor([row["success"] for row in ends])
        table.append(
            {
                "peer": name,
                "seeds": len(runs),
                "success_before": round(mean([run[0]["success"] for run in runs]), 3),
                "success_after": round(float(after.mean()), 3),
                "standard_error": round(float(after.std()) / len(runs) ** 0.5, 3) if len(runs) > 1 else "",
                "mean_of_evaluations": round(mean([area(run) for run in runs]), 3),
                "env_steps": round(mean([row["env_steps"] for row in ends])),
                "seconds": round(mean([row["seconds"] for row in ends]), 1),
                "update_seconds": round(mean([row["update_seconds"] for row in ends]), 1),
                f"reached_{GOOD}": len(reached),
                f"env_steps_to_{GOOD}": round(mean([r["env_steps"] for r in reached])) if reached else "",
                f"seconds_to_{GOOD}": round(mean([r["seconds"] for r in reached]), 1) if reached else "",
            }
        )
    return table


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def area(run: list[dict[str, Any]]) -> float:
    """Mean success over the environment steps of a run, by trapezoids."""
    pairs = list(itertools.pairwise(run))
    total: float = sum((b["env_steps"] - a["env_steps"]) * (a["success"] + b["success"]) / 2 for a, b in pairs)
    return total / int(run[-1]["env_steps"])


def weights(policy: VLAWrapperBase) -> Weights:
    """A copy."""
    return copy.deepcopy(policy.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="both", choices=["both", "update", "training"])
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps of every peer and seed")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--peers", default=",".join(DEFAULT), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9, help="timed trials of an update, after a warm-up")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, chosen = [int(seed) for seed in options.seeds.split(",")], options.peers.split(",")
    if unknown := sorted(set(chosen) - set(PEERS)):
        parser.error(f"unknown peers {unknown}; choose some of {','.join(PEERS)}")
    if options.what != "training":
        write_csv("peers-update", update_table(seeds[0], options.repeats))
    if options.what != "update":
        starts = {seed: supervised(seed) for seed in seeds}
        rows: list[dict[str, object]] = []
        for seed in seeds:
            for name in chosen:
                peer = make_peer(name, seed, starts[seed])
                curve = train(name, peer, seed, options.steps, options.evaluations)
                rows += [{"peer": name, **row} for row in curve]
                write_csv("peers-training", rows, quiet=True)  # an interrupted run keeps what it has
        write_csv("peers-summary", summarise(rows))


if __name__ == "__main__":
    main()
