"""Configuration of simulators on a Ray cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from pcm_rl.config.checks import ConfigError, at_least, one_of, positive


@dataclass(frozen=True)
class RayConfig:
    """Simulators on other machines; read with ``env.workers=ray`` only.

    Attributes:
        address: ``host:port`` of the cluster's head, or ``auto`` for the newest Ray of this machine; null
            starts a Ray on this machine alone and ends it with the run.
        num_cpus: CPUs that each environment asks of the cluster: a number to share out, not a limit.
        resources: What each environment asks for besides, as machines offer it by ``ray start --resources``.
        scheduling: Ray's strategy: ``SPREAD`` over the machines, or ``DEFAULT``, which fills one after the other.
        timeout: Seconds for the cluster to answer, and to give an environment a place.
        log: Show what Ray and the simulators print.
    """

    SECTION: ClassVar[str] = "env.ray."

    address: Optional[str] = None  # noqa: UP045 - OmegaConf on Python 3.10 wants the long form
    num_cpus: float = 1.0
    resources: dict[str, Any] = field(default_factory=dict)
    scheduling: str = "SPREAD"
    timeout: float = 120.0
    log: bool = False

    def __post_init__(self) -> None:
        at_least(0.0, self, "num_cpus")
        positive(self, "timeout")
        one_of(self, "scheduling", ("SPREAD", "DEFAULT"))
        if own := sorted({"CPU", "GPU", "memory"} & set(self.resources)):
            raise ConfigError(f"env.ray.resources names {own[0]}, which Ray counts itself; take env.ray.num_cpus")
        for name, amount in self.resources.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < math.inf:
                raise ConfigError(f"env.ray.resources: {name} must be a number above 0, got {amount!r}")
