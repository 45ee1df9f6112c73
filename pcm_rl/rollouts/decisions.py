"""When the policy decides for waiting workers, and for which of them together."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gymnasium.vector import VectorEnv

from pcm_rl.config import ConfigError, RolloutConfig
from pcm_rl.envs.workers import WorkerVectorEnv
from pcm_rl.policies.family import SamplesRows
from pcm_rl.rollouts.rows import Policy

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Decisions:
    """How many waiting workers share a decision, and how long they wait for each other.

    A forward pass rounds differently for another number of rows. So with ``rows`` each has as many: workers wait until
    there are enough, ``seconds`` have passed since the first began to wait, or nobody else can come, and who is missing
    then is filled up. A row depends neither on the rows beside it nor on timing.

    Attributes:
        rows: Rows of each decision; None decides at once for all that wait, in forward passes of any size.
        seconds: How long the first may wait for the others, at least 0.

    Raises:
        ValueError: If an attribute does not fit.
    """

    rows: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if (self.rows is not None and self.rows < 1) or not self.seconds >= 0:
            raise ValueError(f"expected at least one row and at least 0 seconds, got {self.rows} and {self.seconds}")

    @classmethod
    def of(cls, config: RolloutConfig) -> Decisions:
        """As a recipe says."""
        return cls(config.decisions, config.decision_wait)

    def patience(self, waiting: int, waited: float, coming: int) -> float:
        """Seconds until those who wait are decided for if nobody comes; 0 is now.

        Args:
            waiting: Workers that wait, at least 1.
            waited: Seconds since the first of them began to.
            coming: Workers that execute something, and may come.
        """
        if self.rows is None or waiting >= self.rows or not coming:
            return 0.0
        return max(0.0, self.seconds - waited)

    def check(self, env: VectorEnv, policy: Policy) -> None:
        """Refuse rows where each decision has its own number of them already.

        Raises:
            ConfigError: ``rows`` is given, and the environments are no workers or the policy cannot draw each row with
                a seed of its own.
        """
        if self.rows is None:
            return
        if not isinstance(env, WorkerVectorEnv):
            raise ConfigError(
                f"rollouts.decisions={self.rows} is for environments that run at their own pace, and these are stepped "
                "together; give env.workers=true, or leave rollouts.decisions out"
            )
        if not isinstance(policy, SamplesRows):
            raise ConfigError(
                f"rollouts.decisions={self.rows} needs a policy that draws each row with a seed of its own, such as "
                "policy.family=openvla, and this one is asked for one row at a time; leave rollouts.decisions out"
            )


AT_ONCE = Decisions()


@dataclass
class Queue(Generic[Key, Item]):
    """Those who wait for a decision. Only rows of one shape share a call.

    Attributes:
        decisions: The rule.
    """

    decisions: Decisions
    _waiting: dict[Key, tuple[Item, Hashable, float]] = field(default_factory=dict)  # in the order of arrival

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: Key, item: Item, now: float, shape: Hashable = None) -> None:
        """Someone begins to wait.

        Args:
            key: Who, such as the number of a worker.
            item: What :meth:`take` gives.
            now: Seconds, on any clock.
            shape: Of the row in a forward pass.
        """
        self._waiting[key] = item, shape, now

    def drop(self, key: Key) -> None:
        """Someone does not wait any longer, or never did."""
        self._waiting.pop(key, None)

    def patience(self, now: float, coming: int) -> float | None:
        """Seconds until :meth:`take` gives someone if nobody comes; None where nobody waits."""
        return min((self._left(members, now, coming) for members in self._shapes().values()), default=None)

    def take(self, now: float, coming: int) -> list[Item]:
        """The members of one decision, in the order in which they came; none if all shall wait on.

        Of several shapes that are due the one whose first member came first.
        """
        for members in self._shapes().values():
            if self._left(members, now, coming) <= 0:
                return [self._waiting.pop(key)[0] for key in members[: self.decisions.rows]]
        return []

    def _shapes(self) -> dict[Hashable, list[Key]]:
        shapes: dict[Hashable, list[Key]] = {}
        for key, (_, shape, _) in self._waiting.items():
            shapes.setdefault(shape, []).append(key)
        return shapes

    def _left(self, members: list[Key], now: float, coming: int) -> float:
        return self.decisions.patience(len(members), now - self._waiting[members[0]][2], coming)
