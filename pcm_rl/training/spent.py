"""What the training steps of a run have taken so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pcm_rl.config import Config


@dataclass
class Spent:
    """Sums over all training steps.

    Attributes:
        step: Their number.
        env_steps: Environment steps of their rollouts.
        gradient_chunks: Chunks that went through the backward pass, once per epoch.
        seconds: Seconds, evaluations apart.
    """

    step: int = 0
    env_steps: int = 0
    gradient_chunks: int = 0
    seconds: float = 0.0

    def begin(self, metrics: Mapping[str, float]) -> None:
        """Count a step and its rollouts."""
        self.step += 1
        self.env_steps += int(metrics["env_steps"])

    def end(self, metrics: Mapping[str, float], epochs: int) -> None:
        """Count what its update has taken, and all of its time."""
        self.gradient_chunks += int(metrics.get("chunks_kept", 0)) * epochs
        self.seconds += metrics["step_s"]

    def reaches(self, config: Config) -> bool:
        """Whether the run has made all its steps."""
        limit = config.env_steps
        return self.step >= config.steps or (limit is not None and self.env_steps >= limit)

    def share(self, config: Config) -> float:
        """How much of the run this is, 0 to 1."""
        steps = self.step / config.steps if config.steps else 1.0
        return min(1.0, max(steps, self.env_steps / config.env_steps if config.env_steps else 0.0))

    def columns(self) -> dict[str, float]:
        """As columns of ``evaluation.csv``."""
        return {"train_s" if name == "seconds" else name: value for name, value in asdict(self).items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them; what an older checkpoint lacks is 0."""
        for name, value in asdict(self).items():
            setattr(self, name, state.get(name, value))
