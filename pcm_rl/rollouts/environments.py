"""Configuration -> environments: one that steps actions, a vector of them that steps chunks, and their phase rule."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from pcm_rl.config import ConfigError, EnvConfig
from pcm_rl.envs import MultiTaskEnv, OpenVLAImages, SeededStates, chunked_vector_env
from pcm_rl.support.plugins import load_plugin


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
        try:
            labeller = load_plugin(config.labeller)
            inspect.signature(labeller).bind_partial(**config.labeller_kwargs)
        except (TypeError, ValueError) as error:
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
