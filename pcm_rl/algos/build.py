"""Configuration -> environments, policy and expert."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.algos.checkpoint import load_policy
from pcm_rl.algos.critic import SuccessCritic
from pcm_rl.config import Config, ConfigError, EnvConfig
from pcm_rl.envs import MultiTaskEnv, OpenVLAImages, SeededStates, chunked_vector_env
from pcm_rl.envs.chunked import observation_readers
from pcm_rl.envs.experts import make_expert
from pcm_rl.episodes import STATE
from pcm_rl.policies import StateTokenPolicy

if TYPE_CHECKING:  # it needs packages that a state policy does without
    from pcm_rl.policies.openvla import OpenVLAPolicy

__all__ = [
    "make_critic",
    "make_env",
    "make_expert",
    "make_policy",
    "make_task",
    "make_vector_env",
    "openvla_policy",
    "phase_rule",
]


def make_env(config: EnvConfig, *, render_mode: str | None = None) -> gym.Env:
    """One environment that steps single actions, with all the tasks of ``config``.

    Raises:
        ConfigError: If there is no such id, or the environment refuses its arguments.
    """
    if config.num_tasks == 1:
        return make_task(config, 0, render_mode=render_mode)
    assert config.num_states is not None
    return MultiTaskEnv(
        functools.partial(make_task, config, render_mode=render_mode), config.num_tasks, config.num_states
    )


def make_task(config: EnvConfig, task: int, *, render_mode: str | None = None) -> gym.Env:
    """One environment of one of the tasks.

    Raises:
        ConfigError: As :func:`make_env`.
    """
    extra: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    with _refused_as_config_error(config):
        _import_ids(config)
        env = gym.make(config.id, disable_env_checker=True, **config.task_kwargs(task), **extra)
        if config.images is not None:
            env = OpenVLAImages(env, **config.images)
        return SeededStates(env) if config.init_state == "seed" else env


def make_vector_env(config: EnvConfig) -> VectorEnv:
    """Environments that step whole chunks: the task's own vectorised core, or one process each.

    Raises:
        ConfigError: As :func:`make_env`.
    """
    chunking: dict[str, Any] = {"chunk_length": config.chunk_length}
    with _refused_as_config_error(config):
        _import_ids(config)
        # others' vectorised cores step single actions; ours take chunks
        core = str(gym.spec(config.id).vector_entry_point)
        if not config.workers and core.startswith("pcm_rl.envs.") and not config.tasks:
            return gym.make_vec(
                config.id, config.num_envs, vectorization_mode="vector_entry_point", **chunking, **config.kwargs
            )
        return chunked_vector_env(
            functools.partial(make_env, config),
            config.num_envs,
            workers=config.workers,
            timeout=config.timeout if config.workers else None,
            success=config.success,
            **chunking,
        )


def phase_rule(config: EnvConfig) -> dict[str, Any]:
    """How chunks get their phase: keyword arguments of ``label_episodes`` and of ``ChunkedEnv``.

    Raises:
        ConfigError: If ``env.labeller`` names nothing that can be called, or takes no such arguments.
    """
    rule: dict[str, Any] = {"gripper_index": config.gripper_index, "close_above": config.close_above}
    if config.labeller is not None:
        module, name = config.labeller.split(":")
        try:
            labeller = getattr(importlib.import_module(module), name)
            inspect.signature(labeller).bind_partial(**config.labeller_kwargs)
        except (ImportError, AttributeError, TypeError) as error:
            raise ConfigError(f"env.labeller={config.labeller} with {config.labeller_kwargs}: {error}") from error
        rule["labeller"] = functools.partial(labeller, **config.labeller_kwargs)
    return rule


def _import_ids(config: EnvConfig) -> None:
    if config.import_module is not None:
        importlib.import_module(config.import_module)


@contextlib.contextmanager
def _refused_as_config_error(config: EnvConfig) -> Iterator[None]:
    try:
        yield
    except ConfigError:  # said already, by an environment built inside
        raise
    except (gym.error.Error, TypeError, ValueError) as error:
        arguments = {**config.kwargs, **config.tasks}
        raise ConfigError(f"env.id={config.id} with {arguments}: {error}") from error


def make_policy(config: Config, env: VectorEnv) -> VLAWrapperBase:
    """A token policy that fits ``env``, with fresh weights (OpenVLA: fresh adapters) or those of ``policy.init``.

    Raises:
        ConfigError: If a checkpoint is refused, or its chunks are not the environment's.
        ValueError: If the environment's observation is not a vector, where the policy reads one.
    """
    if config.policy.checkpoint is None:
        policy = _state_policy(config, env)
    else:
        policy = openvla_policy(config)
        expected, action = (policy.chunk_size, policy.action_dim), env.single_action_space.shape
        if action != expected:
            raise ConfigError(f"{config.policy.checkpoint}: its chunks are {expected}, the environment's {action}")
    if config.policy.init is not None:
        with torch.no_grad():
            load_policy(policy, config.policy.init)
    return policy.to(config.device)


def make_critic(config: Config, env: VectorEnv) -> SuccessCritic | None:
    """The critic that gives chunks their advantage, None where the group does.

    Raises:
        ConfigError: If the environment gives no state.
    """
    chosen = config.advantage
    if chosen.name == "group":
        return None
    space, readers = env.single_observation_space, observation_readers(env.single_observation_space)
    if STATE not in readers:
        raise ConfigError(
            f"advantage.name=critic reads {STATE}, which {config.env.id} does not give; use advantage.name=group"
        )
    name, _ = readers[STATE]
    state = space if name is None else cast(gym.spaces.Dict, space)[name]
    assert state.shape is not None
    return SuccessCritic(
        state.shape[0], config.env.max_chunks, lam=chosen.lam, steps=chosen.steps, lr=chosen.lr, seed=config.seed
    )


def openvla_policy(config: Config) -> OpenVLAPolicy:
    """The model of ``policy.checkpoint`` with fresh adapters, or with every weight trainable where their rank is 0.

    Raises:
        ConfigError: If the checkpoint is refused, or no layer answers to ``policy.lora.targets``.
    """
    from pcm_rl.policies.openvla import CheckpointError, OpenVLAPolicy, add_lora, open_checkpoint, quantize_language
    from pcm_rl.policies.openvla.probe import check_bidirectional

    chosen = config.policy
    assert chosen.checkpoint is not None
    dtype: torch.dtype = getattr(torch, chosen.dtype)
    try:
        policy = OpenVLAPolicy(
            open_checkpoint(chosen.checkpoint),
            config.env.chunk_length,
            temperature=chosen.temperature,
            statistics=chosen.statistics,
            dtype=dtype,
            device="cpu" if chosen.quantize else config.device,  # so that the GPU never has to hold all of it
            record_features=chosen.record_features,
        )
    except CheckpointError as error:
        raise ConfigError(f"policy.checkpoint: {error}") from error
    if chosen.quantize:
        quantize_language(policy.model, compute_dtype=dtype)
        policy = policy.to(config.device)
    check_bidirectional(policy)
    lora = chosen.lora
    if lora.rank:
        try:
            add_lora(policy.model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
        except ValueError as error:
            raise ConfigError(f"policy.lora.targets: {error}") from error
    else:
        policy.model.requires_grad_()
    if chosen.compile:
        policy.model.compile_blocks()
    return policy


def _state_policy(config: Config, env: VectorEnv) -> StateTokenPolicy:
    observation, action = env.single_observation_space.shape, env.single_action_space.shape
    if observation is None or len(observation) != 1 or action is None or len(action) != 2:
        raise ValueError(
            f"expected observations [S] and actions [L, D], got {observation} and {action}; images need a policy that "
            "sees, policy.checkpoint=FOLDER"
        )
    return StateTokenPolicy(
        observation[0],
        action[1],
        action[0],
        network=config.policy.network,
        width=config.policy.width,
        depth=config.policy.depth,
        num_bins=config.policy.num_bins,
        temperature=config.policy.temperature,
    )
