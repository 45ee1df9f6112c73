"""Record demonstrations of a scripted expert: noisy states, clean labels."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensordict import TensorDict

from pcm_rl.algos.build import make_env, make_expert
from pcm_rl.algos.states import InitialStates
from pcm_rl.config import Config, ConfigError
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE, IS_PAD, STATE


class Expert(Protocol):
    """A scripted policy, queried once a step."""

    def reset(self, init_state: int) -> None:
        """Start an episode."""

    def action(self, observation: np.ndarray) -> np.ndarray:
        """Clean action ``[D]`` at an observation ``[S]``."""


def record_demonstrations(
    env: gym.Env,
    expert: Expert,
    init_states: Iterable[int],
    *,
    episodes: int,
    chunk_length: int = 8,
    noise: float = 0.1,
    seed: int = 0,
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
        seed: Seed of the noise.
        progress: Called after each episode as ``progress(recorded, tried)``.

    Returns:
        ``[M]`` rows with the state ``[M, S]``, chunk ``[M, L, D]``, ``action_is_pad``, ``episode_id`` (the initial
        state) and ``chunk_id`` (the step).

    Raises:
        RuntimeError: If the initial states run out first.
    """
    recorded: list[TensorDict] = []
    tried = 0
    for init_state in init_states:
        tried += 1
        episode = _one_episode(env, expert, int(init_state), chunk_length, noise, np.random.default_rng([seed, tried]))
        if episode is not None:
            recorded.append(episode)
        if progress is not None:
            progress(len(recorded), tried)
        if len(recorded) == episodes:
            return torch.cat(recorded)
    raise RuntimeError(f"the expert succeeded in {len(recorded)} of {tried} initial states, {episodes} were wanted")


def _one_episode(
    env: gym.Env, expert: Expert, init_state: int, chunk_length: int, noise: float, rng: np.random.Generator
) -> TensorDict | None:
    observation, info = env.reset(options={"init_state": init_state})
    expert.reset(init_state)
    states, labels = [], []
    ended = False
    while not ended:
        clean = np.asarray(expert.action(observation), dtype=np.float32)
        states.append(np.array(observation, dtype=np.float32))
        labels.append(clean)
        action = clean.copy()
        action[:-1] += noise * rng.standard_normal(len(clean) - 1).astype(np.float32)
        observation, _, terminated, truncated, info = env.step(np.clip(action, -1.0, 1.0))
        ended = terminated or truncated
    return _rows(np.stack(states), np.stack(labels), init_state, chunk_length) if info["success"] else None


def _rows(states: np.ndarray, labels: np.ndarray, init_state: int, chunk_length: int) -> TensorDict:
    steps = len(states)
    padded = np.concatenate([labels, np.repeat(labels[-1:], chunk_length - 1, axis=0)])
    chunks = np.ascontiguousarray(sliding_window_view(padded, chunk_length, axis=0).swapaxes(1, 2))
    is_pad = np.arange(steps)[:, None] + np.arange(chunk_length) >= steps
    return TensorDict(
        {
            STATE: torch.from_numpy(states),
            CHUNK: torch.from_numpy(chunks),
            IS_PAD: torch.from_numpy(is_pad),
            EPISODE: torch.full((steps,), init_state),
            CHUNK_ID: torch.arange(steps),
        },
        batch_size=[steps],
    )


def save_demonstrations(demos: TensorDict, path: str | Path, metadata: dict[str, str]) -> None:
    """Write rows and what they were recorded from as one safetensors file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        key if isinstance(key, str) else ".".join(key): value.contiguous() for key, value in demos.items(True, True)
    }
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata)
    os.replace(partial, path)


def load_demonstrations(path: str | Path) -> TensorDict:
    """Read what :func:`save_demonstrations` wrote.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no demonstrations at {path}; record them with `pcm-rl demos`")
    tensors = load_file(path)
    flat: dict[Any, Any] = {tuple(key.split(".")) if "." in key else key: value for key, value in tensors.items()}
    return TensorDict(flat, batch_size=[len(next(iter(flat.values())))])


def demonstrations(config: Config, say: Callable[[str], None] = print) -> TensorDict:
    """The dataset at ``demos.path``, recorded first where there is none.

    Raises:
        ConfigError: If the dataset is of another environment or chunk length, or starts from initial states that this
            run holds out for evaluation.
    """
    path = config.demos.path
    if path is not None and Path(path).is_file():
        demos = load_demonstrations(path)
        _check_fit(demos, path, config)
        return demos
    env = make_env(config.env)
    with contextlib.closing(env):
        expert = make_expert(config.env.id, env, mistakes=config.demos.mistakes)
        demos = record_demonstrations(
            env,
            expert,
            _demo_states(config),
            episodes=config.demos.episodes,
            chunk_length=config.env.chunk_length,
            noise=config.demos.noise,
            seed=config.seed,
            progress=_progress(say, config.demos.episodes) if config.env.num_states else None,
        )
    if path is not None:
        save_demonstrations(demos, path, _origin(config))
        say(f"saved {config.demos.episodes} demonstrations ({len(demos)} steps) to {path}")
    return demos


def _origin(config: Config) -> dict[str, str]:
    kwargs = json.dumps(dict(config.env.kwargs), sort_keys=True)
    return {"env": config.env.id, "kwargs": kwargs, "chunk_length": str(config.env.chunk_length)}


def _check_fit(demos: TensorDict, path: str, config: Config) -> None:
    with safe_open(path, "pt") as file:
        found = file.metadata() or {}
    for key, expected in _origin(config).items():
        if found.get(key) != expected:
            raise ConfigError(
                f"the demonstrations at {path} were recorded with {key}={found.get(key)}, this run has {expected}; "
                "give another demos.path"
            )
    held_out = InitialStates(config.env.num_states, config.env.eval_states, config.seed).evaluation
    shared = sorted(set(demos.get(EPISODE).tolist()) & set(held_out.tolist()))
    if shared:
        raise ConfigError(
            f"the demonstrations at {path} start from initial states {shared}, which seed {config.seed} holds out for "
            "evaluation; record them for this seed with another demos.path"
        )


def _demo_states(config: Config) -> Iterator[int]:
    """Training states only, each once; where they are unlimited, three tries a demonstration from a far-off range."""
    states = InitialStates(config.env.num_states, config.env.eval_states, config.seed)
    if states.training is not None:
        yield from states.training.tolist()
    else:
        start = 500_000_000 + config.seed * 10_000
        yield from range(start, start + 3 * config.demos.episodes + 10)


def _progress(say: Callable[[str], None], wanted: int) -> Callable[[int, int], None]:
    return lambda recorded, tried: say(f"demonstrations: {recorded}/{wanted} recorded, {tried} tried")
