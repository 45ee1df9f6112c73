"""A run without any success learns nothing: after some such steps it stops, saved, and names the causes."""

from __future__ import annotations

from pathlib import Path

from pcm_rl.config import ConfigError
from pcm_rl.rollouts.first_look import HOPELESS


class NeverSucceeds(ConfigError):
    """No episode of many steps in a row has succeeded."""


class Patience:
    """Counts training steps in a row without any success.

    Args:
        limit: Steps after which it is at its end; 0 is never.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.steps = limit, 0

    def ends(self, successes: float) -> bool:
        """Count a step with so many successes; whether the limit is reached, where the count begins again."""
        self.steps = 0 if successes > 0 else self.steps + 1
        if not 0 < self.limit <= self.steps:
            return False
        self.steps = 0
        return True

    def error(self, folder: Path, trajectories: float) -> NeverSucceeds:
        """The error that ends a run in ``folder`` with so many trajectories a step."""
        return NeverSucceeds(
            f"no episode of the last {self.limit} steps ({int(self.limit * trajectories)} episodes) succeeded. "
            f"{HOPELESS}. `pcm-rl check` tries them in seconds. The run is saved: `pcm-rl train --resume {folder} "
            "patience=0` goes on"
        )
