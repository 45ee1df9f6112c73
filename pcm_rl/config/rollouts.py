"""Configuration of the rollouts of a training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from pcm_rl.config.checks import ConfigError, at_least


@dataclass(frozen=True)
class RolloutConfig:
    """Rollouts of a training step.

    Attributes:
        cut: Chance of success in (0, 1); a rollout whose chance is below it at ``cut_after`` decisions in a row ends
            there, as a failure. The chance is that of the credit, so it needs ``advantage.name=critic``, or an
            advantage of one's own with a ``value``. null plays every rollout to its end.
        cut_after: Decisions in a row.
        cut_exempt: Share in (0, 1] of the rollouts that are never cut: they tell how often a cut is wrong.
        overlap: Play the next step's rollouts beside the update, by the policy as it was before it: one step stale,
            for which the clipped ratio corrects.
        decisions: Rows of every forward pass that decides, with ``env.workers`` and a policy that draws each row with a
            seed of its own (``openvla``): fewer are filled up, so that a row depends neither on timing nor on the
            number of workers. A quarter of ``env.num_envs`` is a good number. null decides for whoever waits, in
            forward passes of any size.
        decision_wait: Seconds that the first worker waits for ``decisions`` of them; 0 decides at once.
    """

    SECTION: ClassVar[str] = "rollouts."

    cut: Optional[float] = None  # noqa: UP045
    cut_after: int = 3
    cut_exempt: float = 0.1
    overlap: bool = False
    decisions: Optional[int] = None  # noqa: UP045
    decision_wait: float = 0.0

    def __post_init__(self) -> None:
        if self.cut is not None and not 0.0 < self.cut < 1.0:
            raise ConfigError(f"rollouts.cut must be in (0, 1), got {self.cut}; null cuts no rollout")
        at_least(1, self, "cut_after")
        if not 0.0 < self.cut_exempt <= 1.0:
            raise ConfigError(f"rollouts.cut_exempt must be in (0, 1], got {self.cut_exempt}")
        at_least(1, self, "decisions")
        at_least(0.0, self, "decision_wait")
