"""Record demonstrations of a scripted expert: noisy states, clean labels."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensordict import NestedKey, NonTensorData, TensorDict
from torch import Tensor

from pcm_rl.config import Config
from pcm_rl.envs.chunked import observation_readers, read_observation
from pcm_rl.envs.experts import make_expert
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE, INSTRUCTION, IS_PAD
from pcm_rl.rollouts.dataset import (
    begin_or_continue,
    check_fit,
    load_demonstrations,
    recording_settings,
    save_demonstrations,
)
from pcm_rl.rollouts.environments import make_task
from pcm_rl.rollouts.initial_states import InitialStates


class Expert(Protocol):
    """A scripted policy, queried once a step."""

    def reset(self, init_state: int) -> None:
        """Start an episode."""

    def action(self, observation: Any) -> np.ndarray:
        """Clean action ``[D]`` at an observation."""


def record_demonstrations(
    env: gym.Env,
    expert: Expert,
    init_states: Iterable[int],
    *,
    episodes: int,
    chunk_length: int = 8,
    noise: float = 0.1,
    seed: int = 0,
    task: int = 0,
    keep: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TensorDict:
    """Successful episodes of the expert, one row a *step*: what it saw, and its next ``chunk_length`` clean actions.

    The executed action is the clean one plus Gaussian noise on all dimensions but the last (the gripper), so that the
    states cover mistakes while the labels do not teach them. Failed episodes are left out.

    Args:
        env: Steps single actions; its ``info["success"]`` tells success.
        expert: The scripted policy.
        init_states: Initial states to try, in order.
        episodes: Successful episodes wanted.
        chunk_length: L.
        noise: Standard deviation of the noise, in units of the action.
        seed: Seed of the noise, together with ``task``.
        task: Which task this is, where there are several.
        keep: Folder in which every episode is kept as soon as it has ended, and from which a recording that was
            interrupted goes on; the episodes are the same then. None keeps nothing.
        progress: Called after each episode as ``progress(recorded, tried)``.

    Returns:
        ``[M]`` rows with the observation under the schema's keys, chunk ``[M, L, D]``, ``action_is_pad``,
        ``episode_id`` (the initial state), ``chunk_id`` (the step), and ``language_instruction`` where the info of a
        reset has an ``"instruction"``.

    Raises:
        RuntimeError: If the initial states run out first.
    """
    recorded: list[TensorDict] = []
    tried = 0
    for init_state in init_states:
        tried += 1
        kept = None if keep is None else keep / f"task{task:02d}-try{tried:05d}.safetensors"
        if kept is not None and kept.exists():
            episode = load_demonstrations(kept)
        else:
            rng = np.random.default_rng([seed, tried, task] if task else [seed, tried])
            episode = _one_episode(env, expert, int(init_state), chunk_length, noise, rng)
            if kept is not None:
                save_demonstrations(episode, kept, {"init_state": str(int(init_state))})
        if len(episode):
            recorded.append(episode)
        if progress is not None:
            progress(len(recorded), tried)
        if len(recorded) == episodes:
            return torch.cat(recorded)
    raise RuntimeError(f"the expert succeeded in {len(recorded)} of {tried} initial states, {episodes} were wanted")


def _one_episode(
    env: gym.Env, expert: Expert, init_state: int, chunk_length: int, noise: float, rng: np.random.Generator
) -> TensorDict:
    """The rows of an episode, none if it failed."""
    readers = observation_readers(env.observation_space)
    observation, info = env.reset(options={"init_state": init_state})
    told = info.get("instruction")
    expert.reset(init_state)
    seen: list[dict[NestedKey, Tensor]] = []
    labels = []
    ended = False
    while not ended:
        clean = np.asarray(expert.action(observation), dtype=np.float32)
        seen.append(read_observation(readers, observation))
        labels.append(clean)
        action = clean.copy()
        action[:-1] += noise * rng.standard_normal(len(clean) - 1).astype(np.float32)
        observation, _, terminated, truncated, info = env.step(np.clip(action, -1.0, 1.0))
        ended = terminated or truncated
    rows = _rows(seen, np.stack(labels), init_state, chunk_length)
    if told is not None:
        rows.set(INSTRUCTION, NonTensorData(told, batch_size=rows.batch_size))
    return rows if info["success"] else rows[:0]


def _rows(seen: list[dict[NestedKey, Tensor]], labels: np.ndarray, init_state: int, chunk_length: int) -> TensorDict:
    steps = len(seen)
    padded = np.concatenate([labels, np.repeat(labels[-1:], chunk_length - 1, axis=0)])
    chunks = np.ascontiguousarray(sliding_window_view(padded, chunk_length, axis=0).swapaxes(1, 2))
    is_pad = np.arange(steps)[:, None] + np.arange(chunk_length) >= steps
    rows = TensorDict(
        {
            CHUNK: torch.from_numpy(chunks),
            IS_PAD: torch.from_numpy(is_pad),
            EPISODE: torch.full((steps,), init_state),
            CHUNK_ID: torch.arange(steps),
        },
        batch_size=[steps],
    )
    return rows.update({key: torch.stack([one[key] for one in seen]) for key in seen[0]})


def demonstrations(config: Config, say: Callable[[str], None] = print) -> TensorDict:
    """The dataset at ``demos.path``, recorded first where there is none; ``demos.episodes`` episodes a task.

    A recording that was interrupted goes on where it was: its finished episodes lie in ``<demos.path>.parts`` until the
    dataset is complete.

    Raises:
        ConfigError: If the dataset, or the interrupted recording, is of another environment or chunk length, or starts
            from initial states that this run holds out for evaluation.
    """
    path = None if config.demos.path is None else Path(config.demos.path)
    if path is not None and path.is_file():
        demos = load_demonstrations(path)
        check_fit(demos, path, config)
        return demos
    if path is None:
        return _record(config, None, say)
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
            mine = record_demonstrations(
                env,
                make_expert(config.env.id, env, mistakes=config.demos.mistakes),
                _demo_states(config),
                episodes=config.demos.episodes,
                chunk_length=config.env.chunk_length,
                noise=config.demos.noise,
                seed=config.seed,
                task=task,
                keep=parts,
                progress=progress,
            )
        mine.set(EPISODE, mine.get(EPISODE) + task * (config.env.num_states or 0))
        recorded.append(mine)
        if config.env.tasks:
            say(f"{name}: {config.demos.episodes} episodes, {len(mine)} steps")
    return torch.cat(recorded)


@contextlib.contextmanager
def _bar(name: str, wanted: int) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=wanted)
        yield lambda recorded, tried: progress.update(bar, completed=recorded, description=f"{name}, {tried} tried")


def _demo_states(config: Config) -> Iterator[int]:
    """Training states only, each once; where they are unlimited, three tries a demonstration from a far-off range."""
    training = InitialStates.of(config).training()  # of task 0: every task numbers its own alike
    if training is not None:
        yield from training.tolist()
    else:
        start = 500_000_000 + config.seed * 10_000
        yield from range(start, start + 3 * config.demos.episodes + 10)
