"""The loop that trains any peer of ``peers.py``, and the file that keeps what came of it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from peers_ours import configure

from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.rollouts.evaluate import evaluate
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.support.writing import replacing
from pcm_rl.training.trainer import EVALUATION_SEED

Row = dict[str, Any]


class Peer(Protocol):
    """What trains.

    Attributes:
        policy: For evaluations.
        chunks: How many chunks went through the policy's backward pass so far, counted again in every epoch.
        update: What follows a rollout; replaced by a timed one.
    """

    policy: Any
    chunks: int
    update: Callable[..., Any]

    def advance(self) -> int:
        """Train a little; environment steps done."""


@dataclass(frozen=True)
class Run:
    """A peer on one seed.

    Attributes:
        name: Of the peer.
        kind: What makes it, one of ``peers.KINDS``.
        settings: Its keyword arguments, of a kind that JSON has.
        seed: Seed of everything random.
        steps: Environment steps to do, at least.
        every: Environment steps between two evaluations, at least.
        overrides: Of the recipe, for every kind alike: a smaller task for tests.
    """

    name: str
    kind: str
    settings: dict[str, Any] = field(hash=False)
    seed: int
    steps: int
    every: int
    overrides: tuple[str, ...] = ()

    def file(self, folder: Path) -> Path:
        """Where its rows are kept; whatever changes the run changes the name."""
        told = [self.kind, self.settings, self.steps, self.every, self.overrides]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]
        return folder / f"{self.name}-seed{self.seed}-{digest}.json"

    def rows(self, folder: Path, make: Callable[[Run], Peer]) -> list[Row]:
        """A row for each evaluation: those that ``folder`` has, or of training now, which ``folder`` then has.

        Args:
            folder: Of all runs.
            make: Gives the peer at its start.
        """
        path = self.file(folder)
        if not path.is_file():
            rows = train(self.name, make(self), self.seed, self.steps, self.every, self.overrides)
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                partial.write_text(json.dumps(rows))
        read: list[Row] = json.loads(path.read_text())
        return read


def train(name: str, peer: Peer, seed: int, steps: int, every: int, overrides: tuple[str, ...] = ()) -> list[Row]:
    """Train ``peer`` until ``steps`` environment steps are done; a row for each evaluation, the first before training.

    Args:
        name: For what is printed.
        peer: At its start.
        seed: Of the held-out states.
        steps: Environment steps; the last rollout ends at or behind them.
        every: Environment steps between two evaluations, more where a rollout has more.
        overrides: Of the recipe.

    Returns:
        Rows with ``seconds`` and ``update_seconds`` of processor time, without the evaluations.
    """
    config = configure("full-valid", seed, overrides)
    env, held_out = make_vector_env(config.env), InitialStates.of(config).evaluation
    spent = {"all": 0.0, "update": 0.0}
    peer.update = clocked(peer.update, spent, "update")
    advance = clocked(peer.advance, spent, "all")
    rows: list[Row] = []
    done = 0
    while True:
        if done >= min(len(rows) * every, steps):
            success = evaluate(env, peer.policy, held_out, config.eval_episodes, seed=EVALUATION_SEED).success
            rows.append(
                {
                    "seed": seed,
                    "env_steps": done,
                    "chunks": peer.chunks,
                    "seconds": round(spent["all"], 2),
                    "update_seconds": round(spent["update"], 2),
                    "success": success.success,
                    "episodes": success.episodes,
                }
            )
            print(f"{name}, seed {seed}: {done} steps, {peer.chunks} chunks, {spent['all']:.1f} s, {success}")
        if done >= steps:
            env.close()
            return rows
        done += advance()


def clocked(call: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    """``call``, with its processor time added to ``spent[name]``."""

    def run(*args: Any) -> Any:
        begun = time.process_time()
        try:
            return call(*args)
        finally:
            spent[name] += time.process_time() - begun

    return run
