"""Mean and deviation of the states and actions in demonstrations, for a policy that normalises them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from pcm_rl.config import ConfigError
from pcm_rl.episodes import CHUNK, STATE
from pcm_rl.support.writing import replacing


def write_statistics(demos: TensorDict, path: str | Path) -> Path:
    """Write :func:`statistics_of` as JSON, as ``policy.pi0.statistics`` reads it."""
    found = statistics_of(demos)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def statistics_of(demos: TensorDict) -> dict[str, list[float]]:
    """``state_mean``, ``state_std``, ``actions_mean`` and ``actions_std``, in the environment's units.

    Deviations are those of all steps together, divided by their number. A number of the state that never changes gets
    the deviation 1: divided by nearly 0, a small change in a rollout would become a huge one. A number of the action
    that never changes keeps 0, so that a policy never changes it either.

    Args:
        demos: A row a step, with the state ``[M, S]`` and the next actions ``[M, L, D]``, of which the first is its
            own.

    Raises:
        ConfigError: If the observations have no state.
    """
    state = demos.get(STATE, None)
    if state is None:
        raise ConfigError("the demonstrations have no state, of which there are no statistics; record them with one")
    state_mean, state_std = _moments(state)
    actions_mean, actions_std = _moments(demos.get(CHUNK)[:, 0])
    state_std = torch.where(state_std > 0, state_std, 1.0)
    parts = {"state_mean": state_mean, "state_std": state_std, "actions_mean": actions_mean, "actions_std": actions_std}
    return {name: values.tolist() for name, values in parts.items()}


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """``[M, N]`` -> mean and deviation ``[N]`` float64; a column of equal values has exactly these, and 0."""
    values = values.double()
    same = (values == values[:1]).all(0)
    mean, std = values.mean(0), values.std(0, correction=0)
    return torch.where(same, values[0], mean), torch.where(same, 0.0, std)
