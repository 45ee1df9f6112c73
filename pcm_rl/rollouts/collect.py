"""Roll out a policy on a vector of chunked environments: whole episodes, as rows in the schema."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from torch import Tensor

from pcm_rl.envs.observation import observation_readers, read_observation
from pcm_rl.envs.workers import WorkerVectorEnv
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE, GROUP
from pcm_rl.policies.bins import check_reach
from pcm_rl.policies.family import Acts
from pcm_rl.rollouts.cut import Cut, Watch
from pcm_rl.rollouts.decisions import AT_ONCE, Decisions
from pcm_rl.rollouts.failures import NOT_FINITE, Failures, not_finite
from pcm_rl.rollouts.free_running import collect_from_workers
from pcm_rl.rollouts.rows import Part, Policy, assemble, decide, episode_outcomes, outcome
from pcm_rl.rollouts.starts import check_starts

__all__ = ["Policy", "collect_episodes", "episode_outcomes"]


def collect_episodes(
    env: VectorEnv,
    policy: Policy,
    init_state: Tensor,
    group: Tensor,
    *,
    device: str | torch.device = "cpu",
    task: Tensor | None = None,
    max_tries: int = 3,
    same_starts: bool = True,
    may_be_empty: bool = False,
    cut: Cut | None = None,
    decisions: Decisions = AT_ONCE,
) -> TensorDict:
    """One episode from each initial state; the policy does not change meanwhile.

    Episodes beyond ``env.num_envs`` wait for a free environment. TorchRL's collectors are not used here: they pad
    episodes or cut them at a frame count, and their chunk step pays a success only at a chunk's last step.

    A :class:`~pcm_rl.envs.workers.WorkerVectorEnv` runs asynchronously: a worker continues as soon as its chunk is
    decided. The actions of chunk k of episode i are drawn with a seed made from i, k and one number from torch's global
    generator. The policy is called with one row at a time, so the rows depend neither on timing nor on the number of
    workers. A large policy with a method ``seeded(seeds)`` (OpenVLA) is called with the rows of all waiting workers
    and draws each row with its seed; then timing affects only the rounding of a forward pass of one or several rows,
    and not even that where ``decisions`` gives all forward passes one shape. Other vector environments run
    synchronously: one call of the policy for all, with torch's global generator.

    An episode fails if its worker dies or hangs, its environment raises an error, or a reward or an observation that
    the policy reads is not finite. It is played again; where environments run synchronously all episodes are, so that
    the same actions are drawn. Either way the rows are those of a collection without the failure.

    An episode whose chance of success stays low can be ``cut``: it ends behind the chunk before, as truncated and
    without success, so in equation 1 and in the divergence of phases it is a failure. Its environment plays the next
    waiting episode, or idles. On workers every episode has the rows of one that is not cut, up to the cut. Where
    environments run synchronously that holds until the first cut: the generator then draws for fewer rows.

    Args:
        env: Vector of environments whose action is a chunk ``[L, D]``, without autoreset; ``reset`` takes the options
            ``init_state`` and ``reset_mask``, ``step`` gives ``action_is_pad`` and ``success`` in its infos.
        policy: Writes tokens, chunk and log-probs ``[n, L, D]`` for the observation, ``[n, ...]`` under the schema's
            keys (see :class:`~pcm_rl.envs.chunked.ChunkedEnv`), and ``language_instruction`` where the info of a reset
            has an ``"instruction"`` and the policy's ``in_keys``, if it has any, name it.
        init_state: Initial state of each episode, ``[I]`` int64.
        group: Group of each episode, ``[I]`` int64.
        device: Where the policy runs; the rows stay on the CPU.
        task: Task of each episode, ``[I]`` int64, where an environment builds a simulator for each: a worker prefers
            tasks that it has played before. It changes which worker plays an episode, never the rows.
        max_tries: Failures of one episode, at least 1, until its group is dropped.
        same_starts: Refuse episodes from one initial state that begin with different observations.
        may_be_empty: Give no row, without any entry, where every group was dropped: other processes may have some.
        cut: When an episode ends as hopeless; rows then have :data:`~pcm_rl.episodes.OUTCOME`,
            :data:`~pcm_rl.episodes.CUT` and :data:`~pcm_rl.episodes.CUT_EXEMPT` too. None cuts none.
        decisions: How many waiting workers a large policy decides for together, and how long they wait for each other.

    Returns:
        ``[M]`` rows, episodes in the order of ``init_state``, each ending with ``("next", "done")``. Episodes are
        numbered from 0 without gaps, also where groups are missing.

    Raises:
        ConfigError: ``decisions`` has rows, and environment or policy is none of those that it is for; a
            ``ValueError``.
        DifferentStarts: Episodes from one initial state begin with different observations; a ``ValueError``.
        FloatingPointError: The policy gave a log-prob or an action that is not finite; it names initial state and
            chunk.
        RuntimeError: Every group was dropped because workers died, or a worker could not be built again.
        ValueError: The tensors differ in length or are empty, ``max_tries`` is below 1, the policy's actions lie far
            outside of the environment's action box, or the chance that ``cut`` asks for is not one number in [0, 1] for
            each row.
        Exception: Of the type that an environment raises, which is its cause: every group was dropped, the first
            ``max_tries`` groups before any episode was complete, or the error is one of programming (such as
            ``TypeError``) and came ``max_tries`` times. The message names worker and initial state.

    Warns:
        RuntimeWarning: An episode is played again, or a group was dropped and is missing from the rows.
    """
    lengths = {len(values) for values in (init_state, group, task) if values is not None}
    if len(lengths) > 1 or 0 in lengths or max_tries < 1:
        raise ValueError(
            f"expected as many initial states as groups (and tasks), at least one, and max_tries of at least 1; got "
            f"{len(init_state)}, {len(group)}, {None if task is None else len(task)} and {max_tries}"
        )
    if cut is not None and len(cut.exempt) != len(init_state):
        raise ValueError(f"cut.exempt has {len(cut.exempt)} entries, expected {len(init_state)}: one for each episode")
    decisions.check(env, policy)
    if isinstance(env.single_action_space, spaces.Box):
        check_reach(getattr(policy, "action_tokenizer", None), env.single_action_space)
    failures = Failures(max_tries, may_drop_all=may_be_empty)
    with policy.acting() if isinstance(policy, Acts) else contextlib.nullcontext():
        if isinstance(env, WorkerVectorEnv):
            where = torch.device(device)
            rows = collect_from_workers(
                env, policy, init_state, group, task=task, device=where, failures=failures, cut=cut, decisions=decisions
            )
        else:
            rows = _collect_in_step(env, policy, init_state, group, device, failures, cut)
    if same_starts and len(rows):
        check_starts(rows, init_state[torch.isin(group, rows.get(GROUP))])  # of groups that were not dropped
    return rows


class _Stopped(Exception):
    """Environments failed in the middle of a collection.

    Attributes:
        episodes: Those that they played, a single one where it is known which has failed.
        where: Which environment.
        reason: What happened, in one line.
        error: What was raised, if anything.
    """

    def __init__(self, episodes: list[int], where: str, reason: str, error: Exception | None = None) -> None:
        super().__init__(reason)
        self.episodes, self.where, self.reason, self.error = episodes, where, reason, error


def _collect_in_step(
    env: VectorEnv,
    policy: Policy,
    init_state: Tensor,
    group: Tensor,
    device: str | torch.device,
    failures: Failures,
    cut: Cut | None,
) -> TensorDict:
    """Play all episodes, and all of them again after a failure, so that the same actions are drawn."""
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    while True:
        kept = torch.tensor([int(number) not in failures.dropped_groups for number in group])
        if not kept.any():
            return failures.nothing_left()
        random = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]
        try:
            watch = None if cut is None else Watch(replace(cut, exempt=cut.exempt[kept]), policy)
            return _play_in_step(env, policy, init_state[kept], group[kept], device, failures, watch)
        except _Stopped as stopped:
            torch.set_rng_state(random[0])
            for cuda, state in zip(devices, random[1:], strict=True):
                torch.cuda.set_rng_state(state, cuda)
            env.restarts = getattr(env, "restarts", 0) + 1  # type: ignore[attr-defined]
            episodes = kept.nonzero().flatten()[stopped.episodes]
            failed = stopped.where, stopped.reason, stopped.error
            failures.add(episodes.tolist(), init_state[episodes].tolist(), int(group[episodes[0]]), failed)


def _play_in_step(
    env: VectorEnv,
    policy: Policy,
    init_state: Tensor,
    group: Tensor,
    device: str | torch.device,
    failures: Failures,
    watch: Watch | None,
) -> TensorDict:
    readers = observation_readers(env.single_observation_space)
    queue = deque(range(len(init_state)))
    episode_of = np.full(env.num_envs, -1)  # [E], the episode that each environment plays; -1 for none
    chunk_id = np.zeros(len(init_state), dtype=np.int64)
    instructions: list[str | None] = [None] * len(init_state)
    shape = env.single_action_space.shape
    assert shape is not None
    parts: list[Part] = []
    observation: Part = {}

    while True:
        mask = _assign_episodes(episode_of, queue, len(init_state))
        if mask.any():
            states = init_state.numpy()[np.where(episode_of >= 0, episode_of, 0)]
            with _stopping(env, episode_of):
                reset_observation, infos = env.reset(options={"init_state": states, "reset_mask": mask.copy()})
            starts = read_observation(readers, reset_observation)
            observation = _merged(observation, starts, torch.from_numpy(mask))
            for e in np.flatnonzero(mask & (episode_of >= 0)):
                instructions[episode_of[e]] = infos["instruction"][e] if "instruction" in infos else None
        active = np.flatnonzero(episode_of >= 0)
        if not len(active):
            break
        episode = episode_of[active]
        count = torch.from_numpy(chunk_id[episode])
        told = [instructions[i] for i in episode]
        seen = {key: value[active] for key, value in observation.items()}
        for row in not_finite(policy, seen):
            raise _Stopped([int(episode[row])], f"environment {active[row]}", NOT_FINITE)
        part = decide(policy, seen, told, init_state=init_state[episode], chunk=count, device=device)
        part |= {EPISODE: torch.from_numpy(episode), CHUNK_ID: count}
        if watch is not None:
            ends = watch.ends(part, told)
            if ends.any():
                failures.completed = True
                _idle(env, episode_of, active[ends])
                active, episode = active[~ends], episode[~ends]
                part = {key: value[torch.from_numpy(~ends)] for key, value in part.items()}
            if not len(active):
                continue
        action = np.zeros((env.num_envs, *shape), dtype=np.float32)
        action[active] = part[CHUNK].numpy()
        with _stopping(env, episode_of):
            raw_observation, reward, terminated, truncated, info = env.step(action)
        for row in np.flatnonzero(~np.isfinite(reward[active])).tolist():
            raise _Stopped([int(episode[row])], f"environment {active[row]}", NOT_FINITE)
        observation = read_observation(readers, raw_observation)
        answers = (reward, terminated, truncated, info["action_is_pad"], info["success"])
        part |= outcome(*(np.asarray(answer)[active] for answer in answers))
        parts.append(part)
        if watch is not None:
            watch.executed(part)
        chunk_id[episode] += 1
        ended = (terminated | truncated) & (episode_of >= 0)
        failures.completed |= bool(ended.any())
        episode_of[ended] = -1
    rows = assemble(parts, group, instructions)
    return rows if watch is None else watch.write(rows, torch.arange(len(init_state)))


def _idle(env: VectorEnv, episode_of: np.ndarray, stopped: np.ndarray) -> None:
    """End the episodes of the environments ``stopped``, which need no step until their reset.

    An environment that cannot idle is stepped with actions of 0, and its answers are left out.
    """
    episode_of[stopped] = -1
    idle = getattr(env, "idle", None)
    if idle is not None:
        mask = np.zeros(env.num_envs, dtype=bool)
        mask[stopped] = True
        idle(mask)


@contextlib.contextmanager
def _stopping(env: VectorEnv, episode_of: np.ndarray) -> Iterator[None]:
    """What an environment raises becomes a :class:`_Stopped` that names it, where it can be told."""
    try:
        yield
    except Exception as error:
        members = [e for e, member in enumerate(getattr(env.unwrapped, "envs", ())) if getattr(member, "failed", False)]
        envs = [e for e in members if episode_of[e] >= 0] or np.flatnonzero(episode_of >= 0).tolist()
        where = f"environment {members[0]}" if members else "the environments, which are stepped as one"
        stopped = [int(episode_of[e]) for e in envs]
        raise _Stopped(stopped, where, f"{type(error).__name__}: {error}", error) from error


def _assign_episodes(episode_of: np.ndarray, queue: deque[int], episodes: int) -> np.ndarray:
    """Give waiting episodes to free environments, in order; returns the environments to reset, ``[E]`` bool."""
    mask = np.full(len(episode_of), len(queue) == episodes)  # the first time all, also those that get no episode
    for e in np.flatnonzero(episode_of < 0):
        if queue:
            episode_of[e], mask[e] = queue.popleft(), True
    return mask


def _merged(observation: dict[Any, Tensor], starts: dict[Any, Tensor], mask: Tensor) -> dict[Any, Tensor]:
    """``starts`` where ``mask [E]``, ``observation`` elsewhere."""
    for key, value in observation.items():
        starts[key][~mask] = value[~mask]
    return starts
