"""Whether all processes were started with the same: settings, versions, and the weights that are never trained.

What is trained is compared at every save; what these hold, nobody would notice later.
"""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from typing import Any

import torch
from torch import nn

from pcm_rl.config import Config, ConfigError, as_written, differences
from pcm_rl.processes.ranks import Ranks

# their versions decide what a rollout or an update gives
PACKAGES = ("pcm_rl", "torch", "tensordict", "torchrl", "gymnasium", "numpy", "transformers", "mujoco", "robosuite")
OWN = ("threads", "run_dir", "name")  # these may differ: the first process alone writes
SAMPLE = 256  # elements of a weight that are compared


def check_alike(ranks: Ranks, config: Config) -> None:
    """Raise ``ConfigError`` on all processes unless they have the same settings and versions."""
    if ranks.size == 1:
        return
    settings = {key: value for key, value in as_written(config).items() if key not in OWN}
    _compare(ranks, settings, "give all processes the same configuration")
    versions = {name: _version(name) for name in PACKAGES} | {"python": ".".join(platform.python_version_tuple()[:2])}
    _compare(ranks, versions, "install the same versions on every machine")


def check_frozen(ranks: Ranks, policy: nn.Module) -> None:
    """Raise ``ConfigError`` on all processes unless their weights that are not trained agree, and their buffers.

    Of every tensor up to 256 elements are compared, which other checkpoints do not share.
    """
    if ranks.size == 1:
        return
    frozen = {name: p for name, p in policy.named_parameters() if not p.requires_grad} | dict(policy.named_buffers())
    digests = {name: _digest(tensor) for name, tensor in frozen.items()}
    _compare(ranks, digests, "put the same checkpoint under its path on every machine")


def _compare(ranks: Ranks, entries: dict[str, Any], remedy: str) -> None:
    first, *others = ranks.gather_json(entries)
    for rank, other in enumerate(others, 1):
        for key, (value, differing) in differences(first, other).items():
            raise ConfigError(f"{key} is {value} on process 0 and {differing} on process {rank}; {remedy}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@torch.no_grad()
def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().flatten()
    sample = flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].cpu().contiguous()
    content = sample.view(torch.uint8).numpy().tobytes()
    return f"{list(tensor.shape)} {hashlib.sha256(content).hexdigest()[:12]}"
