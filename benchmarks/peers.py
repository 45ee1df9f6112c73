"""Other trainers beside ours, on the same toy with the same policy, on one thread.

    python benchmarks/peers.py update                            one update; writes results/peers-update.csv
    python benchmarks/peers.py training [--steps N] [--seeds 0,1] [--peers pcm,sb3-ppo] [--every N] [--ahead PEER]
    python benchmarks/peers.py tune [--peers sb3-ppo,torchrl-ppo]           writes results/peers-tuning.csv

The peers ``sb3-...`` need stable-baselines3. ``training`` and ``tune`` take ``key=value`` changes of the recipe at the
end, which all peers get, such as ``demos.episodes=20`` for a start from fewer demonstrations.

``update``: one update on one and the same batch of pick and place (groups with both outcomes, collected with the
supervised policy of ``configs/pick_place.yaml``), by our methods and by TorchRL's recipe; trials interleaved.

``training``: success on 256 held-out initial states against environment steps, chunks that went through the policy's
backward pass, and seconds of rollouts and updates (evaluations left out), until ``--steps`` environment steps are done.
The rows of each peer and seed are kept in ``runs/peers``, and what is there is not run again: an interrupted command
goes on, several may share the peers or the seeds, and the same command with all of them then writes
``results/peers-training.csv`` (every evaluation), ``peers-seeds.csv`` (a row a peer and seed), ``peers-summary.csv`` (a
row a peer) and ``peers-ahead.csv`` (who needs less, seed by seed; ``peers_summary.py``).

``tune``: the same number of configurations for every peer in :data:`SEARCHES`, on tuning seeds (``peers_tune.py``).

Peers are in :data:`PEERS`, with all that differs from what their files say. All but ``sb3-tokens`` and ``sb3-box``
start from the same supervised policy. Seconds are processor time of one thread, which other work on the machine changes
less than the wall-clock.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import medians, write_csv
from peers_ours import OurPeer, Weights, configure, quiet, supervised, weights
from peers_ppo import PPOPeer
from peers_run import Peer, Run
from peers_summary import ahead, prices, summarise
from peers_torchrl import DECISIONS, RecipePeer, RecipeUpdate
from peers_tune import CHOSEN, SEARCHES, tune
from tensordict import TensorDictBase
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.algos import PCMSampler
from pcm_rl.config import METHODS, Config, ConfigError
from pcm_rl.episodes import ADVANTAGE, pad_episodes
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.training.build import make_policy
from pcm_rl.training.grpo import make_loss, make_optimizer, update_policy
from pcm_rl.training.trainer import Trainer

WORK = Path(__file__).parent.parent / "runs" / "peers"
OURS = ("full-padded", "full-valid", "pcm", "top-advantage")
BUDGETS = {"top-advantage": 8, "top-critic": 4}  # for the whole batch; the others have the recipe's 12
RECIPE: dict[str, Any] = {  # what configs/pick_place_critic.yaml changes in the recipe
    "method": "top-critic",
    "advantage.steps": 5,
    "groups": 20,
    "group_size": 1,
    "update.lr": 6e-4,
    "rollouts.cut": 0.05,
}
TORCHRL: dict[str, dict[str, Any]] = {"torchrl": {}, "torchrl-3e-5": {"lr": 3e-5}, "torchrl-4": {"steps": 4}}
# Kind and settings of each. Settings of our trainer are a method, and changes of the recipe by their dotted keys.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("ours", {"method": name}) for name in METHODS},
    "top-critic-20-cut": ("ours", RECIPE),
    "full-valid-64": ("ours", {"method": "full-valid", "rows": DECISIONS}),
    "srpo-like": ("ours", CHOSEN["srpo-like"]),
    **{name: ("vla_grpo", options) for name, options in TORCHRL.items()},
    "vla-grpo": ("vla_grpo", CHOSEN["vla-grpo"]),
    "torchrl-ppo": ("torchrl_ppo", CHOSEN["torchrl-ppo"]),
    "sb3-ppo": ("sb3", CHOSEN["sb3-ppo"]),
    "sb3-tokens-start": ("sb3", {"tokens": True, "start": True}),
    "sb3-tokens": ("sb3", {"tokens": True, "start": False}),
    "sb3-box": ("sb3", {"tokens": False, "start": False}),
}
DEFAULT = ("sb3-ppo", "torchrl-ppo", "vla-grpo", "srpo-like", "full-valid", "pcm", "top-critic-20-cut")


# -- what makes a peer ------------------------------------------------------------------------------------------------


def ours(run: Run, *, method: str, rows: int | None = None, **changes: Any) -> Peer:
    """Our trainer, with as many environments as a step has rollouts; ``changes`` of the recipe by their dotted keys."""
    told = [f"selection.budget={BUDGETS[method]}"] if method in BUDGETS else []
    told += [f"{key}={value}" for key, value in changes.items()]
    config = configure(method, run.seed, [*told, *run.overrides])
    rollouts = f"env.num_envs={config.groups * config.group_size}"
    return OurPeer(configure(method, run.seed, [*told, rollouts, *run.overrides]), start_of(run), rows)


def vla_grpo(run: Run, *, groups: int | None = None, **options: Any) -> Peer:
    """TorchRL's recipe, with one environment for each rollout of a wave."""
    config = configure("full-valid", run.seed, run.overrides)
    number = config.groups if groups is None else groups
    sizes = [f"groups={number}", f"env.num_envs={number * config.group_size}"]
    return _beside(run, RecipePeer, sizes, lambda config: {"config": config, **options})


def torchrl_ppo(run: Run, **options: Any) -> Peer:
    """PPO of TorchRL's parts."""
    return _beside(run, PPOPeer, [], lambda config: options)


def sb3(run: Run, **options: Any) -> Peer:
    """Stable-Baselines3's PPO."""
    from peers_sb3 import SB3Peer  # the others do without the package

    return _beside(run, SB3Peer, [], lambda config: {"seed": run.seed, **options})


KINDS: dict[str, Callable[..., Peer]] = {"ours": ours, "vla_grpo": vla_grpo, "torchrl_ppo": torchrl_ppo, "sb3": sb3}


def start_of(run: Run) -> Weights:
    """The supervised weights of the run's seed."""
    return supervised(run.seed, *run.overrides)


def _beside(run: Run, make: Callable[..., Peer], sizes: list[str], options: Callable[[Config], dict[str, Any]]) -> Peer:
    """Another trainer, with our policy at its start, our environments and our training states."""
    start = start_of(run)  # before the seed: the first run of a seed may draw here
    config = configure("full-valid", run.seed, [*run.overrides, *sizes])
    torch.manual_seed(run.seed)
    env, deal = make_vector_env(config.env), InitialStates.of(config).deal
    policy = make_policy(config, env)
    policy.load_state_dict(start)
    return make(policy=policy, env=env, deal=deal, **options(config))


def make_peer(run: Run) -> Peer:
    """A peer at its start."""
    return KINDS[run.kind](run, **run.settings)


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
        budget = [f"selection.budget={BUDGETS[method]}"] if method in BUDGETS else []
        config = configure(method, seed, budget)
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


# -- commands ---------------------------------------------------------------------------------------------------------


def training(runs: list[Run], base: list[str], steps: int) -> None:
    """Train what is not there yet, then write the tables of all."""
    curves = {(run.name, run.seed): run.rows(WORK, make_peer) for run in runs}
    every = [{"peer": name, **row} for (name, _), rows in curves.items() for row in rows]
    priced = [{"peer": name, **prices(rows, steps)} for (name, _), rows in curves.items()]
    write_csv("peers-training", every, quiet=True)
    write_csv("peers-seeds", priced, quiet=True)
    write_csv("peers-summary", summarise(curves, steps))
    if compared := ahead(priced, base):
        write_csv("peers-ahead", compared, quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["update", "training", "tune"])
    parser.add_argument("--steps", type=int, help="environment steps of every run (training 800,000, tune 300,000)")
    parser.add_argument("--seeds", help="of training 0,1,2; of tune 600,601")
    parser.add_argument("--peers", help=f"of {', '.join(PEERS)}; for tune of {', '.join(SEARCHES)}")
    parser.add_argument("--every", type=int, default=40_000, help="environment steps between two evaluations")
    parser.add_argument("--ahead", default="top-critic-20-cut", help="peers that each other one is compared with")
    parser.add_argument("--repeats", type=int, default=9, help="timed trials of an update, after a warm-up")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the recipe for all peers")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    tunes = options.what == "tune"
    seeds = [int(seed) for seed in (options.seeds or ("600,601" if tunes else "0,1,2")).split(",")]
    steps = options.steps or (300_000 if tunes else 800_000)
    base = [(seed, steps, options.every, tuple(options.overrides)) for seed in seeds]
    known = tuple(SEARCHES) if tunes else tuple(PEERS)
    chosen = options.peers.split(",") if options.peers else list(known if tunes else DEFAULT)
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"unknown peers {unknown}; choose some of {','.join(known)}")
    try:
        configure("full-valid", seeds[0], options.overrides)
    except ConfigError as error:
        parser.error(str(error))
    if options.what == "update":
        write_csv("peers-update", update_table(seeds[0], options.repeats))
    elif tunes:
        write_csv("peers-tuning", tune(chosen, base, WORK, make_peer), quiet=True)
    else:
        runs = [Run(name, *PEERS[name], *rest) for rest in base for name in chosen]
        training(runs, options.ahead.split(","), steps)


if __name__ == "__main__":
    main()
