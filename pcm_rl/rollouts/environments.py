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
from torch import Tensor

from pcm_rl.config import ConfigError, EnvConfig, as_written
from pcm_rl.envs import (
    MultiTaskEnv,
    ObservationParts,
    OpenVLAImages,
    Pi0Images,
    RayCluster,
    SeededStates,
    chunked_vector_env,
)
from pcm_rl.envs.gripper import check_threshold, no_gripper
from pcm_rl.envs.shared import NoRoom
from pcm_rl.envs.success import SuccessRule
from pcm_rl.envs.workers import WorkerVectorEnv
from pcm_rl.support.plugins import load_callable


def make_env(config: EnvConfig, *, render_mode: str | None = None) -> gym.Env:
    """One environment that steps single actions, with all the tasks of ``config``.

    Raises:
        ConfigError: If there is no such id, or the environment refuses its arguments.
    """
    if config.num_tasks == 1:
        return make_task(config, 0, render_mode=render_mode)
    assert config.num_states is not None
    make = functools.partial(make_task, config, render_mode=render_mode)
    return MultiTaskEnv(make, config.num_tasks, config.num_states, keep=config.keep_tasks)


def make_task(config: EnvConfig, task: int, *, render_mode: str | None = None) -> gym.Env:
    """One environment of one of the tasks.

    Raises:
        ConfigError: As :func:`make_env`.
    """
    extra: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    with _refused_as_config_error(config):
        _import_ids(config)
        env = gym.make(config.id, disable_env_checker=True, **{**config.task_kwargs(task), **extra})
        for name, kwargs in config.wrapper_calls:
            env = _wrapped(env, name, kwargs)
        if config.observation is not None:
            env = _with_parts(env, config.observation)
        if config.images is not None:
            env = _with_images(env, **config.images)
        return SeededStates(env) if config.init_state == "seed" else env


def _with_images(env: gym.Env, *, prepare: str = "openvla", **settings: Any) -> gym.Env:
    wrapper = {"openvla": OpenVLAImages, "pi0": Pi0Images}[prepare]
    return wrapper(env, **settings)


def make_vector_env(config: EnvConfig) -> VectorEnv:
    """Environments that step whole chunks: the task's vectorised core, or one process for each.

    Raises:
        ConfigError: As :func:`make_env`, or the gripper's rule does not fit the actions.
    """
    success_rule(config)  # an error here, and not in a worker
    phase_rule(config)  # an error here, and not after the first rollouts
    with _refused_as_config_error(config):
        env = _vector_env(config)
    try:
        _check_gripper(config, env.single_action_space)
    except ConfigError:
        env.close()
        raise
    return env


def _vector_env(config: EnvConfig) -> VectorEnv:
    chunking: dict[str, Any] = {"chunk_length": config.chunk_length}
    _import_ids(config)
    if _has_core(config):
        return gym.make_vec(
            config.id, config.num_envs, vectorization_mode="vector_entry_point", **chunking, **config.kwargs
        )
    env = chunked_vector_env(
        functools.partial(make_env, config),
        config.num_envs,
        workers=_workers(config),
        timeout=config.timeout if config.workers else None,
        success=config.success,
        reward=config.reward,
        **chunking,
    )
    if isinstance(env, WorkerVectorEnv):
        env.keep_tasks = config.keep_tasks
    return env


def _workers(config: EnvConfig) -> bool | RayCluster:
    if config.workers != "ray":
        return bool(config.workers)
    ray = config.ray
    try:
        return RayCluster(ray.address, ray.num_cpus, ray.resources, ray.scheduling, ray.timeout, ray.log)
    except ValueError as error:
        raise ConfigError(f"env.ray: {error}") from error


def _check_gripper(config: EnvConfig, space: gym.Space[Any]) -> None:
    """Raise ``ConfigError`` where the threshold of the built-in labeller tells nothing about these actions."""
    if config.gripper_index is None or config.closed is not None or config.labeller is not None:
        return
    below = config.close_below is not None
    name, value = ("close_below", config.close_below) if below else ("close_above", config.close_above)
    assert isinstance(space, gym.spaces.Box) and value is not None
    try:
        check_threshold(space, config.gripper_index, name, value)
    except ValueError as error:
        raise ConfigError(f"env.{error}") from error


def _has_core(config: EnvConfig) -> bool:
    """Whether the environment has a vectorised core that does all that the configuration needs."""
    # vectorised cores of other packages step single actions; ours take chunks
    ours = str(gym.spec(config.id).vector_entry_point).startswith("pcm_rl.envs.")
    plain = not (config.tasks or config.wrappers or config.observation is not None or config.images is not None)
    unchanged = config.init_state == "option" and config.success is None and config.reward == "sum"
    return ours and plain and unchanged and not config.workers


def success_rule(config: EnvConfig) -> SuccessRule:
    """What counts as success.

    Raises:
        ConfigError: If ``env.success`` names nothing that can be called.
    """
    try:
        return SuccessRule(config.success)
    except ValueError as error:
        raise ConfigError(f"env.success: {error}") from error


def phase_rule(config: EnvConfig) -> dict[str, Any]:
    """The rule for phases: keyword arguments of ``label_episodes`` and of ``ChunkedEnv``.

    Raises:
        ConfigError: If ``env.labeller`` or ``env.closed`` names nothing that can be called, or the labeller takes no
            such arguments.
    """
    rule = _gripper_rule(config)
    if config.labeller is not None:
        try:
            labeller = load_callable(config.labeller)
            inspect.signature(labeller).bind_partial(**config.labeller_kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"env.labeller={config.labeller} with {config.labeller_kwargs}: {error}") from error
        rule["labeller"] = functools.partial(labeller, **config.labeller_kwargs)
    return rule


def _gripper_rule(config: EnvConfig) -> dict[str, Any]:
    """The rule for a closed gripper: keyword arguments of ``label_episodes`` and of ``ChunkedEnv``."""
    if config.closed is not None:
        try:
            return {"closed": load_callable(config.closed)}
        except ValueError as error:
            raise ConfigError(f"env.closed: {error}") from error
    if config.gripper_index is None:
        return {"closed": no_gripper}
    if config.close_below is not None:
        return {"closed": functools.partial(_below, index=config.gripper_index, value=config.close_below)}
    return {"gripper_index": config.gripper_index, "close_above": config.close_above}


def _below(actions: Tensor, *, index: int, value: float) -> Tensor:
    dimensions = actions.shape[-1]
    if not -dimensions <= index < dimensions:
        raise ValueError(f"gripper_index must lie in [-{dimensions}, {dimensions - 1}], got {index}")
    return actions[..., index] < value


def _wrapped(env: gym.Env, name: str, kwargs: dict[str, Any]) -> gym.Env:
    try:
        wrapper = load_callable(name)
    except ValueError as error:
        env.close()
        raise ConfigError(f"env.wrappers: {error}") from error
    try:
        wrapped = wrapper(env, **kwargs)
        if not isinstance(wrapped, gym.Env):
            raise TypeError(f"expected a wrapped environment, got {wrapped!r}")
    except (gym.error.Error, AssertionError, TypeError, ValueError) as error:  # Gymnasium's wrappers use assert
        env.close()
        raise ConfigError(f"env.wrappers: {name} with {as_written(kwargs)}: {error}") from error
    return wrapped


def _with_parts(env: gym.Env, parts: Any) -> gym.Env:
    try:
        return ObservationParts(env, parts)
    except ValueError as error:
        env.close()
        raise ConfigError(f"env.observation: {error}") from error


def _import_ids(config: EnvConfig) -> None:
    if config.import_module is None:
        return
    try:
        importlib.import_module(config.import_module)
    except ImportError as error:
        raise ConfigError(f"env.import_module={config.import_module}: {error}") from error


@contextlib.contextmanager
def _refused_as_config_error(config: EnvConfig) -> Iterator[None]:
    try:
        yield
    except ConfigError:  # raised by an environment that was built inside
        raise
    except (gym.error.Error, NoRoom, TypeError, ValueError) as error:
        arguments = as_written({**config.kwargs, **config.tasks})
        raise ConfigError(f"env.id={config.id} with {arguments}: {error}") from error
