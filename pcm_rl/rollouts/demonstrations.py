"""Record demonstrations of a scripted expert: noisy states, clean labels."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensordict import NestedKey, NonTensorData, TensorDict
from torch import Tensor

from pcm_rl.config import Config, ConfigError
from pcm_rl.envs.experts import Expert, make_expert
from pcm_rl.envs.observation import observation_readers, read_observation
from pcm_rl.envs.success import MissingSuccess, Success, SuccessRule
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE, INSTRUCTION, IS_PAD
from pcm_rl.rollouts.dataset import (
    begin_or_continue,
    load_demonstrations,
    recording_settings,
    save_demonstrations,
)
from pcm_rl.rollouts.environments import make_task
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.rollouts.next_actions import next_actions
from pcm_rl.rollouts.saved import saved_demonstrations
from pcm_rl.support.room import check_room


class TooFewSuccesses(RuntimeError):
    """There are too few initial states in which the expert succeeds."""


def record_demonstrations(
    env: gym.Env,
    expert: Expert,
    init_states: Iterable[int],
    *,
    episodes: int,
    chunk_length: int = 8,
    noise: float = 0.1,
    gripper_index: int | None = -1,
    success: Success | None = None,
    seed: int = 0,
    task: int = 0,
    keep: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TensorDict:
    """Successful episodes of the expert, one row per *step*: observation and next ``chunk_length`` clean actions.

    The executed action is the clean one plus Gaussian noise on all dimensions except the gripper's, clipped to the
    action box. So the states cover mistakes, but the labels do not teach them. An episode ends at its first success.
    Failed episodes are left out.

    Args:
        env: Steps single actions.
        expert: The scripted policy.
        init_states: Initial states to try, in order.
        episodes: Successful episodes wanted.
        chunk_length: L.
        noise: Standard deviation of the noise, in units of half the width of the action box (1 where it is unbounded).
        gripper_index: Action dimension without noise, the gripper's command; None where there is no gripper.
        success: Success rule, as in :class:`~pcm_rl.envs.chunked.ChunkedEnv`.
        seed: Seed of the noise, together with ``task``.
        task: Number of the task, where there are several.
        keep: Folder in which every episode is saved at its end. An interrupted recording continues from it, with the
            same episodes. None saves nothing.
        progress: Called after each episode as ``progress(recorded, tried)``.

    Returns:
        ``[M]`` rows with the observation under the schema's keys, chunk ``[M, L, D]``, ``action_is_pad``,
        ``episode_id`` (the initial state), ``chunk_id`` (the step), and ``language_instruction`` where the info of a
        reset has an ``"instruction"``.

    Raises:
        TooFewSuccesses: If there are too few initial states for so many successes.
    """
    rule, disturbance = SuccessRule(success), _Disturbance(env.action_space, noise, gripper_index)
    recorded: list[TensorDict] = []
    tried = 0
    for init_state in init_states:
        tried += 1
        path = None if keep is None else keep / f"task{task:02d}-try{tried:05d}.safetensors"
        if path is not None and path.exists():
            episode = load_demonstrations(path)
        else:
            rng = np.random.default_rng([seed, tried, task] if task else [seed, tried])
            disturb = functools.partial(disturbance, rng)
            episode = _one_episode(env, expert, int(init_state), chunk_length, rule, disturb)
            if path is not None:
                save_demonstrations(episode, path, {"init_state": str(int(init_state))})
        if len(episode):
            recorded.append(episode)
        if progress is not None:
            progress(len(recorded), tried)
        if len(recorded) == episodes:
            return torch.cat(recorded)
    raise TooFewSuccesses(f"the expert succeeded in {len(recorded)} of {tried} initial states, {episodes} were wanted")


class _Disturbance:
    """Makes the executed action from a clean one: noise on all dimensions except the gripper's, within the box."""

    def __init__(self, space: gym.Space[Any], noise: float, gripper_index: int | None) -> None:
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"demonstrations need an action space Box [D] (one action a step), got {space}")
        (dimensions,) = space.shape
        if gripper_index is not None and not -dimensions <= gripper_index < dimensions:
            raise ValueError(f"gripper_index is {gripper_index}; expected {-dimensions} to {dimensions - 1}, or None")
        self._space, self._noise = space, noise
        self._arm = np.ones(dimensions, dtype=bool)
        if gripper_index is not None:
            self._arm[gripper_index] = False
        half = 0.5 * (space.high.astype(np.float64) - space.low)
        self._unit = np.where(np.isfinite(half), half, 1.0)[self._arm].astype(np.float32)

    def __call__(self, rng: np.random.Generator, clean: np.ndarray) -> np.ndarray:
        if clean.shape != self._space.shape or not np.isfinite(clean).all():
            raise ValueError(f"the expert's action is {clean.tolist()}; expected {len(self._arm)} finite numbers")
        action = clean.copy()
        action[self._arm] += self._noise * rng.standard_normal(len(self._unit)).astype(np.float32) * self._unit
        return np.clip(action, self._space.low, self._space.high, dtype=self._space.dtype)


def _one_episode(
    env: gym.Env,
    expert: Expert,
    init_state: int,
    chunk_length: int,
    rule: SuccessRule,
    disturb: Callable[[np.ndarray], np.ndarray],
) -> TensorDict:
    """The rows of an episode, none if it failed; ``disturb`` makes the executed action from a clean one."""
    readers = observation_readers(env.observation_space)
    observation, info = env.reset(options={"init_state": init_state})
    instruction = info.get("instruction")
    expert.reset(init_state)
    observations: list[dict[NestedKey, Tensor]] = []
    labels = []
    ended = succeeded = False
    while not (ended or succeeded):
        clean = np.asarray(expert.action(observation), dtype=np.float32)
        observations.append(read_observation(readers, observation))
        labels.append(clean)
        observation, reward, terminated, truncated, info = env.step(disturb(clean))
        where = f"step {len(labels)} from initial state {init_state}"
        succeeded = rule(env, info, bool(terminated), float(reward), where)
        ended = terminated or truncated
    rows = _rows(observations, np.stack(labels), init_state, chunk_length)
    if instruction is not None:
        rows.set(INSTRUCTION, NonTensorData(instruction, batch_size=rows.batch_size))
    return rows if succeeded else rows[:0]


def _rows(
    observations: list[dict[NestedKey, Tensor]], labels: np.ndarray, init_state: int, chunk_length: int
) -> TensorDict:
    steps = len(observations)
    chunks, is_pad = next_actions(torch.from_numpy(labels), torch.tensor([steps]), chunk_length)
    rows = TensorDict(
        {
            CHUNK: chunks,
            IS_PAD: is_pad,
            EPISODE: torch.full((steps,), init_state),
            CHUNK_ID: torch.arange(steps),
        },
        batch_size=[steps],
    )
    return rows.update(
        {key: torch.stack([observation[key] for observation in observations]) for key in observations[0]}
    )


def demonstrations(config: Config, say: Callable[[str], None] = print) -> TensorDict:
    """The dataset at ``demos.path``, recorded if it does not exist; ``demos.episodes`` episodes per task.

    A folder there is a LeRobot data set, see :func:`~pcm_rl.rollouts.lerobot.read.read_lerobot`.

    An interrupted recording continues: its finished episodes are in ``<demos.path>.parts`` until the dataset is
    complete.

    Raises:
        ConfigError: If the dataset, or the interrupted recording, has another environment or chunk length, or starts
            from initial states that this run holds out for evaluation; if there is no expert, or it fails too often.
    """
    saved = saved_demonstrations(config, say)
    if saved is not None:
        return saved
    if config.demos.path is None:
        return _record(config, None, say)
    path = Path(config.demos.path)
    check_room(path.parent)
    parts = path.with_name(path.name + ".parts")
    begin_or_continue(parts, recording_settings(config))
    demos = _record(config, parts, say)
    save_demonstrations(demos, path, recording_settings(config))
    shutil.rmtree(parts)
    say(f"saved {demos.get(EPISODE).unique().numel()} demonstrations ({len(demos)} steps) to {path}")
    return demos


def _record(config: Config, parts: Path | None, say: Callable[[str], None]) -> TensorDict:
    recorded = []
    for task in range(config.env.num_tasks):
        env = make_task(config.env, task)
        name = f"demonstrations of task {task}" if config.env.tasks else "demonstrations"
        with contextlib.closing(env), _bar(name, config.demos.episodes) as progress:
            rows = _record_task(config, env, task, parts, progress)
        rows.set(EPISODE, rows.get(EPISODE) + task * (config.env.num_states or 0))
        recorded.append(rows)
        if config.env.tasks:
            say(f"{name}: {config.demos.episodes} episodes, {len(rows)} steps")
    return torch.cat(recorded)


def _record_task(
    config: Config, env: gym.Env, task: int, parts: Path | None, progress: Callable[[int, int], None]
) -> TensorDict:
    expert = _expert(config, env)
    try:
        return record_demonstrations(
            env,
            expert,
            _demo_states(config),
            episodes=config.demos.episodes,
            chunk_length=config.env.chunk_length,
            noise=config.demos.noise,
            gripper_index=config.env.gripper_index,
            success=config.env.success,
            seed=config.seed,
            task=task,
            keep=parts,
            progress=progress,
        )
    except TooFewSuccesses as error:
        raise ConfigError(
            f"{error}; ask for fewer demos.episodes or less demos.noise, or look at env.success and the horizon"
        ) from error
    except MissingSuccess as error:
        raise ConfigError(f"env.{error.args[0]}") from error


def _expert(config: Config, env: gym.Env) -> Expert:
    try:
        return make_expert(config.env.id, env, mistakes=config.demos.mistakes, expert=config.demos.expert)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"demos.expert: {error}") from error


@contextlib.contextmanager
def _bar(name: str, episodes: int) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=episodes)
        yield lambda recorded, tried: progress.update(bar, completed=recorded, description=f"{name}, {tried} tried")


def _demo_states(config: Config) -> Iterator[int]:
    """Training states only, each once; where they are unlimited, three tries per demonstration from a distant range."""
    training = InitialStates.of(config).training()  # of task 0: every task numbers its states in the same way
    if training is not None:
        yield from training.tolist()
    else:
        start = 500_000_000 + config.seed * 10_000
        yield from range(start, start + 3 * config.demos.episodes + 10)
