"""Name initial states by seeds, for environments that have no other name for them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class SeededStates(gym.Wrapper[Any, Any, Any, Any]):
    """Turns `reset(options={"init_state": k})` into `reset(seed=k)`.

    A GRPO group is several rollouts from one initial state. Most Gymnasium environments make it from the seed, so a
    seed names it. The environment must give the same state for the same seed again, on one instance and across
    instances.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Used where no `init_state` is given.
            options: `init_state`, a nonnegative integer, becomes the seed; other options are passed on.

        Returns:
            The environment's observation and info.
        """
        options = dict(options or {})
        if "init_state" in options:
            seed = int(options.pop("init_state"))
        return self.env.reset(seed=seed, options=options or None)
