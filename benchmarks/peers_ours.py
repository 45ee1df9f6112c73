"""Our trainer as a peer, and the supervised policy that all peers of a seed start from; see ``peers.py``."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.config import METHODS, Config, load_config
from pcm_rl.training.grpo import lr_factor, scaled_rate, update_policy
from pcm_rl.training.trainer import Trainer

CONFIG = Path(__file__).parent.parent / "configs" / "pick_place.yaml"
Weights = dict[str, Any]


def configure(method: str, seed: int, overrides: Sequence[str] = ()) -> Config:
    """The recipe of pick and place by one of our methods, changed by ``overrides``."""
    always = [f"seed={seed}", "logger=none", "record=false", "threads=1"]
    return load_config(CONFIG, [*METHODS[method].overrides(), *overrides, *always])


def quiet(line: str) -> None:
    """What a trainer says of itself is not shown."""


@functools.cache
def supervised(seed: int, *overrides: str) -> Weights:
    """Weights of the supervised policy that all peers of a seed start from."""
    trainer = Trainer(configure("full-valid", seed, overrides), quiet)
    trainer.supervised_start()
    trainer.env.close()
    return weights(trainer.policy)


def weights(policy: VLAWrapperBase) -> Weights:
    """A copy."""
    return copy.deepcopy(policy.state_dict())


class OurPeer:
    """Our trainer without its folder, report and films.

    Args:
        config: The run.
        start: Weights.
        rows: Rows of a minibatch; None takes the configuration's number of minibatches.
    """

    def __init__(self, config: Config, start: Weights, rows: int | None = None) -> None:
        self.trainer, self.rows, self.chunks = Trainer(config, quiet), rows, 0
        self.trainer.policy.load_state_dict(start)
        self.policy = self.trainer.policy
        self.update: Callable[..., Any] = self._update
        self.trainer.grpo.update = lambda kept, _spent: self.update(kept)  # type: ignore[method-assign]

    def _update(self, kept: TensorDictBase) -> dict[str, float]:
        own = self.trainer.grpo
        number = own.config.update.minibatches if self.rows is None else -(-len(kept) // self.rows)
        update = dataclasses.replace(own.config.update, minibatches=number)
        self.chunks += len(kept) * update.epochs
        with scaled_rate(own.optimizer, lr_factor(update, None)):  # a falling rate is refused
            return update_policy(own.loss, own.optimizer, kept, update, own.generator)

    def advance(self) -> int:
        """One step of the trainer; environment steps done."""
        return int(self.trainer.train_step()["env_steps"])
