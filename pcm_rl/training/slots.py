"""Chunk slots of a full episode: they follow from the horizon and the length of a chunk."""

from __future__ import annotations

import dataclasses

from gymnasium.vector import VectorEnv
from tensordict import TensorDictBase

from pcm_rl.config import Config, ConfigError
from pcm_rl.envs.horizon import vector_horizon
from pcm_rl.episodes import pad_episodes
from pcm_rl.rollouts.first_look import look_at_length


def with_slots(config: Config, env: VectorEnv) -> Config:
    """The configuration with ``env.max_chunks`` as a number, before anything is rolled out.

    Args:
        config: The run.
        env: Its environments. Where they tell no horizon, ``config`` is returned as it is.

    Raises:
        ConfigError: If ``env.max_chunks`` is given and an episode may have more chunks.
    """
    told, length, given = vector_horizon(env), config.env.chunk_length, config.env.max_chunks
    if told is None:
        return config
    horizon = horizon_of_run(config, env)
    needed = -(-horizon // length)
    if given is not None and given < needed:
        raise ConfigError(
            f"env.max_chunks={given}: an episode of {horizon} steps has {needed} chunks of {length}; leave "
            f"env.max_chunks out, or give at least {needed}"
        )
    return dataclasses.replace(config, env=dataclasses.replace(config.env, max_chunks=given or needed))


def horizon_of_run(config: Config, env: VectorEnv) -> int:
    """Steps after which the longest episode ends: of all slots, where the environments do not tell."""
    told = vector_horizon(env)
    return config.env.slots * config.env.chunk_length if told is None else max([told, *_horizons_of_tasks(config)])


def _horizons_of_tasks(config: Config) -> list[int]:
    """Those that the recipe gives; the environments tell only that of the first task."""
    given = [value for name in ("horizon", "max_episode_steps") for value in config.env.tasks.get(name, [])]
    return [value for value in given if type(value) is int]


def pad_to_slots(rows: TensorDictBase, slots: int) -> TensorDictBase:
    """:func:`~pcm_rl.episodes.pad_episodes` of ``rows [M]`` to ``slots``.

    Raises:
        ConfigError: If an episode has more chunks.
    """
    finding = look_at_length(rows, slots)
    if finding.level == "fail":
        raise ConfigError(finding.text)
    return pad_episodes(rows, slots)
