"""The supervised start: demonstrations, and behaviour cloning until a target."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Generator
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.algos.sft import supervise
from pcm_rl.config import Config
from pcm_rl.processes.files import of_first
from pcm_rl.processes.ranks import Ranks
from pcm_rl.rollouts.demonstrations import demonstrations
from pcm_rl.rollouts.evaluate import Success


@contextlib.contextmanager
def start_at_hand(config: Config, ranks: Ranks) -> Iterator[Config]:
    """``config`` with the first process's ``policy.init`` where this one can read it, as long as the block lasts."""
    if config.policy.init is None:
        yield config
        return
    with of_first(ranks, Path(config.policy.init)) as path:
        yield dataclasses.replace(config, policy=dataclasses.replace(config.policy, init=str(path)))


def supervised_start(
    policy: VLAWrapperBase,
    config: Config,
    *,
    generator: Generator,
    measure: Callable[[], Success],
    ranks: Ranks,
    say: Callable[[str], None],
) -> None:
    """Behaviour cloning from few demonstrations; with ``sft.steps=0`` the policy does not change.

    All processes do the same steps: the start is short, and the gradients would be the same.

    Args:
        policy: Changed in place.
        config: The run.
        generator: Draws the rows.
        measure: Returns the success on training states; called every ``sft.check_every`` steps with an ``sft.target``.
        ranks: The processes; the first one makes the demonstrations.
        say: Called with each line of text.
    """
    sft = config.sft
    if not sft.steps:
        return
    started = time.perf_counter()
    demos = ranks.rows_of_first(lambda: demonstrations(config, say))

    def reached_target() -> bool:
        assert sft.target is not None
        result = measure()
        say(f"supervised start: success {result} on training states, wanted {sft.target:.0%}")
        return result.success >= sft.target

    losses = supervise(
        policy,
        demos,
        steps=sft.steps,
        batch_size=sft.batch_size,
        lr=sft.lr,
        generator=generator,
        stop=None if sft.target is None else reached_target,
        stop_every=sft.check_every,
    )
    ranks.equalise(policy)
    unit = "of the policy's own loss" if hasattr(policy, "drawn_key") else "nats a token"
    say(
        f"supervised start: {len(demos)} steps of demonstrations, {len(losses)} gradient steps, "
        f"{losses[-1]:.3f} {unit}, {time.perf_counter() - started:.1f} s"
    )
