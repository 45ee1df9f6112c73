"""The horizon of an environment: after how many steps it ends an episode, where it tells."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.vector import SyncVectorEnv, VectorEnv

from pcm_rl.envs.tasks import MultiTaskEnv

# of `TimeLimit`, of simulators, of MetaWorld
_NAMES = ("_max_episode_steps", "horizon", "max_episode_steps", "max_path_length")


def horizon_of(env: gymnasium.Env[Any, Any]) -> int | None:
    """The smallest limit of steps that an environment or one of its wrappers names; None where none does.

    Of several tasks it is that of the one being played.
    """
    limits = []
    while True:
        limits += [getattr(env, name, None) for name in _NAMES]
        if isinstance(env, MultiTaskEnv):
            env = env.current
        elif isinstance(env, gymnasium.Wrapper):
            env = env.env
        else:
            return min((limit for limit in limits if type(limit) is int and limit > 0), default=None)


def vector_horizon(env: VectorEnv[Any, Any, Any]) -> int | None:
    """:func:`horizon_of` one of the environments; an attribute ``horizon`` of the whole comes first."""
    horizon = getattr(env, "horizon", None)
    if type(horizon) is int:
        return horizon
    return horizon_of(env.envs[0]) if isinstance(env, SyncVectorEnv) else None
