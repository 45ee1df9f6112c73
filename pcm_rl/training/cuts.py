"""The hopeless rollouts that a run cuts: which are exempt, what is saved, and how often a cut is wrong."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import VectorEnv
from tensordict import TensorDictBase
from torch import Tensor

from pcm_rl.algos.credit import Credit
from pcm_rl.config import Config, ConfigError
from pcm_rl.rollouts.cut import Cut, cut_metrics, exempt_rollouts
from pcm_rl.training.slots import horizon_of_run


class Cuts:
    """What the section ``rollouts`` makes of a run's rollouts, and the cuts of the run so far.

    Args:
        config: The run, its slots as a number.
        env: Its environments.
        credit: Its credit, whose value says what is hopeless.

    Attributes:
        checked: Exempt rollouts so far that would have been cut.
        wrong: Those of them that succeeded.

    Raises:
        ConfigError: If rollouts are to be cut, and the credit has no value.
    """

    def __init__(self, config: Config, env: VectorEnv, credit: Credit) -> None:
        self.section, self.seed, self.credit = config.rollouts, config.seed, credit
        self.checked = self.wrong = 0
        self._group_size, self._horizon = config.group_size, horizon_of_run(config, env)
        if self.section.cut is not None and credit.value is None:
            raise ConfigError(
                f"rollouts.cut={self.section.cut:g} needs a chance of success, and advantage.name="
                f"{config.advantage.name} has no value; use advantage.name=critic, or leave rollouts.cut out"
            )

    def of(self, groups: Tensor) -> Cut | None:
        """The cut of one collection; None where no rollout is ever cut.

        Args:
            groups: Numbers among all groups of the run of those that this process plays, ``[J]`` int64, consecutive.
        """
        section, size = self.section, self._group_size
        if section.cut is None:
            return None
        first = int(groups[0]) * size if len(groups) else 0
        exempt = exempt_rollouts(self.seed, first, len(groups) * size, section.cut_exempt)
        return Cut(self.credit.value if self.credit.ready() else None, section.cut, section.cut_after, exempt)

    def count(self, metrics: dict[str, float], rows: TensorDictBase) -> dict[str, float]:
        """A step's metrics with its cuts, which count from now on, and its success corrected for them.

        A rollout that was cut counts as a success at the rate at which the exempt rollouts of the run that would have
        been cut have succeeded; 0 before there is one.

        Args:
            metrics: As :func:`~pcm_rl.rollouts.rows.rollout_metrics` gives them, where a cut is a failure.
            rows: ``[M]`` rows of all processes.
        """
        if self.section.cut is None:
            return metrics
        counts = cut_metrics(rows, self._horizon)
        self.checked += int(counts["cuts_checked"])
        self.wrong += int(counts["cuts_wrong"])
        rate = self.wrong / self.checked if self.checked else 0.0
        success = (metrics["successes"] + rate * counts["rollouts_cut"]) / metrics["trajectories"]
        return {**metrics, "success": success, **counts}

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"checked": self.checked, "wrong": self.wrong}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the saved counts."""
        self.checked, self.wrong = int(state["checked"]), int(state["wrong"])
