"""Configuration -> environments, policy and expert."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from pcm_rl.algos.checkpoint import load_policy
from pcm_rl.config import Config, EnvConfig
from pcm_rl.envs import chunked_vector_env
from pcm_rl.envs.experts import make_expert
from pcm_rl.policies import StateTokenPolicy

__all__ = ["make_env", "make_expert", "make_policy", "make_vector_env"]


def make_env(config: EnvConfig, *, render_mode: str | None = None) -> gym.Env:
    """One environment that steps single actions."""
    if config.import_module is not None:
        importlib.import_module(config.import_module)
    extra: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    return gym.make(config.id, disable_env_checker=True, **config.kwargs, **extra)


def make_vector_env(config: EnvConfig, num_envs: int | None = None) -> VectorEnv:
    """``num_envs`` environments that step whole chunks: the task's own vectorised core, or one process each."""
    if config.import_module is not None:
        importlib.import_module(config.import_module)
    number = num_envs or config.num_envs
    if not config.workers and gym.spec(config.id).vector_entry_point is not None:
        return gym.make_vec(
            config.id,
            number,
            vectorization_mode="vector_entry_point",
            chunk_length=config.chunk_length,
            **config.kwargs,
        )
    return chunked_vector_env(
        functools.partial(make_env, config),
        number,
        chunk_length=config.chunk_length,
        workers=config.workers,
        gripper_index=config.gripper_index,
        close_above=config.close_above,
        success=config.success,
    )


def make_policy(config: Config, env: VectorEnv) -> StateTokenPolicy:
    """A token policy that fits ``env``, with fresh weights or those of ``policy.init``.

    Raises:
        ValueError: If the environment's observation is not a vector.
    """
    observation, action = env.single_observation_space.shape, env.single_action_space.shape
    if observation is None or len(observation) != 1 or action is None or len(action) != 2:
        raise ValueError(f"expected observations [S] and actions [L, D], got {observation} and {action}")
    policy = StateTokenPolicy(
        observation[0],
        action[1],
        action[0],
        network=config.policy.network,
        width=config.policy.width,
        depth=config.policy.depth,
        num_bins=config.policy.num_bins,
        temperature=config.policy.temperature,
    )
    if config.policy.init is not None:
        with torch.no_grad():
            load_policy(policy, config.policy.init)
    return policy.to(config.device)
