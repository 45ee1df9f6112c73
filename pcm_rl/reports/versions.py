"""Versions of the packages that a result may depend on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform

from pcm_rl.envs.libero.package import find_libero

_EPISODES = ("pcm_rl", "torch", "mujoco", "metaworld")  # their versions may change a trajectory
_TRAINING = (*_EPISODES, "torchrl", "tensordict", "gymnasium", "numpy", "tokenizers", "transformers", "peft")


def versions(env_id: str) -> dict[str, str]:
    """What is installed of the packages on whose version an evaluation may depend; for LIBERO, which of them it is."""
    return _installed(_EPISODES, env_id)


def training_versions(env_id: str) -> dict[str, str]:
    """The same for a training run, with Python's version."""
    return {"python": platform.python_version(), **_installed(_TRAINING, env_id)}


def _installed(names: tuple[str, ...], env_id: str) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found | ({"libero": find_libero()} if env_id == "pcm_rl/Libero-v0" else {})
