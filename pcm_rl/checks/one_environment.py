"""One environment of a recipe, in this process: a few random steps, its starts, its success, its expert."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector.utils import create_empty_array
from tensordict import NestedKey, TensorDict
from torch import Tensor

from pcm_rl.checks.attempt import attempt
from pcm_rl.config import Config, ConfigError
from pcm_rl.envs.experts import make_expert
from pcm_rl.envs.observation import observation_readers, read_observation
from pcm_rl.episodes import CHUNK_ID, EPISODE, label_episodes
from pcm_rl.rollouts.demonstrations import record_demonstrations
from pcm_rl.rollouts.environments import make_task, phase_rule, success_rule
from pcm_rl.rollouts.first_look import Finding, look_at_phases
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.rollouts.saved import has_demonstrations, saved_demonstrations
from pcm_rl.rollouts.starts import check_starts

STEPS = 16  # random ones
EXPERT_TRIES = 4  # initial states
_ON_MUJOCO = ("mujoco", "robosuite", "libero", "metaworld", "dm_control")


@dataclass
class _Played:
    """What the environment answered to random actions."""

    observations: list[Any] = field(default_factory=list)
    answers: list[tuple[dict[str, Any], bool, float]] = field(default_factory=list)  # info, terminated, reward


@dataclass
class Looked:
    """What is known of an environment.

    Attributes:
        failed: Names of the checks that failed.
        mujoco: Whether MuJoCo is behind it.
    """

    failed: set[str] = field(default_factory=set)
    mujoco: bool = False


def look_at_environment(config: Config) -> Generator[Finding, None, Looked]:
    """Try one environment of a recipe."""
    looked = Looked()
    for finding in _findings(config, looked):
        if finding.level == "fail":
            looked.failed.add(finding.name)
        yield finding
    return looked


def _findings(config: Config, looked: Looked) -> Iterator[Finding]:
    states = _training_states(config, EXPERT_TRIES)
    with contextlib.ExitStack() as stack:
        env = yield from attempt("environment", lambda: make_task(config.env, 0))
        if env is None:
            return
        stack.enter_context(contextlib.closing(env))
        looked.mujoco = _uses_mujoco(env)
        played = yield from attempt("environment", lambda: _played(env, states[0]))
        if played is None:
            return
        yield Finding("environment", "ok", f"{config.env.id}: {env.observation_space} -> {env.action_space}")
        if (yield from attempt("observation", lambda: _check_observations(env, played))):
            yield Finding("observation", "ok", f"{len(played.observations)} of them finite, and of the space's shape")
        if (yield from attempt("initial states", lambda: _check_states(env, config))):
            yield Finding("initial states", "ok", _described(config))
        if config.env.same_starts and (yield from attempt("starts", lambda: _check_starts(env, states))):
            yield Finding("starts", "ok", "two episodes from one initial state begin alike")
        rule = yield from attempt("success", lambda: success_rule(config.env))
        if rule is None or not (yield from attempt("success", lambda: [rule(env, *rest) for rest in played.answers])):
            return
        if config.sft.steps and config.policy.init is None:
            yield from _demonstrations(config, env, states)


def _uses_mujoco(env: gym.Env) -> bool:
    """Whether the environment, or a part that it keeps, is of a package on MuJoCo."""
    base = env.unwrapped
    kinds = [*type(base).__mro__, *map(type, vars(base).values())]
    return any(kind.__module__.partition(".")[0] in _ON_MUJOCO for kind in kinds)


def _training_states(config: Config, number: int) -> list[int]:
    """The first training states of task 0, as the task numbers them."""
    states = InitialStates.of(config)
    training = states.training()
    return (states.deal(number) if training is None else training[:number]).tolist()


def _played(env: gym.Env, state: int) -> _Played:
    played = _Played()
    observation, _ = env.reset(options={"init_state": state})
    played.observations.append(observation)
    env.action_space.seed(0)
    for _ in range(STEPS):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        played.observations.append(observation)
        played.answers.append((dict(info), bool(terminated), float(reward)))
        if terminated or truncated:
            break
    return played


def _check_observations(env: gym.Env, played: _Played) -> bool:
    readers = observation_readers(env.observation_space)
    example = create_empty_array(env.observation_space, n=1)
    expected = {key: tuple(value.shape[1:]) for key, value in read_observation(readers, example).items()}
    for step, observation in enumerate(played.observations):
        for key, value in read_observation(readers, observation).items():
            name = ".".join(key) if isinstance(key, tuple) else key
            if tuple(value.shape) != expected[key]:
                raise ConfigError(
                    f"{name} has shape {tuple(value.shape)} at step {step}, and its space says {expected[key]}; "
                    "correct its observation_space"
                )
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                wrong = int((~torch.isfinite(value)).sum())
                raise ConfigError(
                    f"{wrong} of {value.numel()} numbers of {name} are not finite at step {step}; no policy can use "
                    "them: correct the environment, or take them out (env.wrappers)"
                )
    return True


def _check_states(env: gym.Env, config: Config) -> bool:
    """Start from the last of the states, which an environment with fewer of them refuses."""
    if config.env.num_states is not None:
        try:
            env.reset(options={"init_state": config.env.num_states - 1})
        except Exception as error:
            raise ConfigError(
                f"env.num_states={config.env.num_states}: the last of them is refused ({error})"
            ) from error
    return True


def _described(config: Config) -> str:
    split = InitialStates.of(config).describe()
    many = f" of each of {config.env.num_tasks} tasks" if config.env.num_tasks > 1 else ""
    count = {name: len(states.split()) for name, states in split.items()}
    if config.env.num_states is None:
        return f"training {split['train']}, evaluation {split['evaluation']}"
    return f"{count['train']} for training and {count['evaluation']} for evaluation{many}"


def _check_starts(env: gym.Env, states: list[int]) -> bool:
    readers = observation_readers(env.observation_space)
    order = [states[0], states[-1], states[0]]
    starts: list[dict[NestedKey, Tensor]] = [
        read_observation(readers, env.reset(options={"init_state": state})[0]) for state in order
    ]
    rows = TensorDict({key: torch.stack([start[key] for start in starts]) for key in starts[0]}, batch_size=[3])
    rows.update({CHUNK_ID: torch.zeros(3, dtype=torch.int64), EPISODE: torch.arange(3)})
    check_starts(rows, torch.tensor(order))
    return True


def _demonstrations(config: Config, env: gym.Env, states: list[int]) -> Iterator[Finding]:
    """The dataset of a supervised start if there is one, else a demonstration of the expert, and its phases."""
    if has_demonstrations(config):
        lines: list[str] = []
        demos = yield from attempt("demonstrations", lambda: saved_demonstrations(config, lines.append))
        text = "; ".join([f"those of {config.demos.path}", *lines])
    else:
        demos = yield from attempt("demonstrations", lambda: _one_demonstration(config, env, states))
        text = "the expert succeeds"
    if demos is None:
        return
    yield Finding("demonstrations", "ok", text)
    steps, length = demos.get(CHUNK_ID), config.env.chunk_length  # a row of a dataset is a step
    chunks = demos[steps % length == 0].set(CHUNK_ID, steps[steps % length == 0] // length)
    phase = yield from attempt("phases", lambda: label_episodes(chunks, **phase_rule(config.env)))
    if phase is not None:
        yield phases_of(config, phase)


def phases_of(config: Config, phase: Tensor) -> Finding:
    """:func:`~pcm_rl.rollouts.first_look.look_at_phases`; a single phase is well where the rule weighs none."""
    finding = look_at_phases(phase)
    by_phase = True
    with contextlib.suppress(ConfigError):  # named where the rule is needed
        by_phase = config.selection.rule.by_phase
    return finding if by_phase else dataclasses.replace(finding, level="ok")


def _one_demonstration(config: Config, env: gym.Env, states: list[int]) -> TensorDict:
    try:
        expert = make_expert(config.env.id, env, expert=config.demos.expert)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"demos.expert: {error}") from error
    try:
        return record_demonstrations(
            env,
            expert,
            states,
            episodes=1,
            chunk_length=config.env.chunk_length,
            noise=config.demos.noise,
            gripper_index=config.env.gripper_index,
            success=config.env.success,
            seed=config.seed,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"{error}: look at env.success, at the horizon and at demos.noise={config.demos.noise:g}"
        ) from error
