"""Roll out a policy on a vector of chunked environments: whole episodes, as rows in the schema."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from torch import Tensor

from pcm_rl.envs.chunked import observation_readers, read_observation
from pcm_rl.envs.workers import WorkerVectorEnv
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE
from pcm_rl.rollouts.free_running import collect_from_workers
from pcm_rl.rollouts.rows import Part, Policy, assemble, decide, episode_outcomes, outcome

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
) -> TensorDict:
    """One episode from each initial state, with the policy of one version throughout.

    Episodes beyond ``env.num_envs`` wait for a free environment. TorchRL's collectors are not used here: they pad
    episodes or cut them at a frame count, and their chunk step pays a success only at a chunk's last step.

    A :class:`~pcm_rl.envs.workers.WorkerVectorEnv` runs free: each worker goes on as soon as its own chunk is decided.
    The actions of chunk k of episode i are drawn under a seed made from i, k and one number from torch's global
    generator. The policy is called with one row at a time, so that the rows depend neither on timing nor on the number
    of workers, and an episode whose worker has died is played again, to the same end. A large policy with a method
    ``seeded(seeds)`` (OpenVLA) is called with the rows of all workers that wait: it draws each under its own seed, and
    what is left of timing is the rounding of a forward of one row or of several. Other vector environments go in step,
    one call of the policy for all, with torch's global generator as it is.

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
            tasks that it has played before. It changes who plays what, never the rows.
        max_tries: Failures of workers in one episode, at least 1, until its group is given up.

    Returns:
        ``[M]`` rows, episodes in the order asked for, each ending with ``("next", "done")``. Episodes are numbered from
        0 without gaps, also where groups are missing.

    Raises:
        FloatingPointError: The policy gave a log-prob or an action that is not finite; it names initial state and
            chunk.
        RuntimeError: Every group was given up, or a worker could not be built again.
        ValueError: The tensors differ in length or are empty, ``max_tries`` is below 1, or an environment refuses an
            initial state or a chunk.

    Warns:
        RuntimeWarning: A group was given up and is missing from the rows.
    """
    lengths = {len(values) for values in (init_state, group, task) if values is not None}
    if len(lengths) > 1 or 0 in lengths or max_tries < 1:
        raise ValueError(
            f"expected as many initial states as groups (and tasks), at least one, and max_tries of at least 1; got "
            f"{len(init_state)}, {len(group)}, {None if task is None else len(task)} and {max_tries}"
        )
    if isinstance(env, WorkerVectorEnv):
        return collect_from_workers(
            env, policy, init_state, group, task=task, device=torch.device(device), max_tries=max_tries
        )
    return _collect_in_step(env, policy, init_state, group, device)


def _collect_in_step(
    env: VectorEnv, policy: Policy, init_state: Tensor, group: Tensor, device: str | torch.device
) -> TensorDict:
    readers = observation_readers(env.single_observation_space)
    queue = deque(range(len(init_state)))
    slot = np.full(env.num_envs, -1)  # episode that each environment plays
    chunk_id = np.zeros(len(init_state), dtype=np.int64)
    told: list[str | None] = [None] * len(init_state)
    shape = env.single_action_space.shape
    assert shape is not None
    parts: list[Part] = []
    observation: Part = {}

    while True:
        mask = _free_for_next(slot, queue, len(init_state))
        if mask.any():
            states = init_state.numpy()[np.where(slot >= 0, slot, 0)]
            fresh, infos = env.reset(options={"init_state": states, "reset_mask": mask.copy()})
            observation = _renewed(observation, read_observation(readers, fresh), torch.from_numpy(mask))
            for e in np.flatnonzero(mask & (slot >= 0)):
                told[slot[e]] = infos["instruction"][e] if "instruction" in infos else None
        active = np.flatnonzero(slot >= 0)
        if not len(active):
            break
        episode, count = slot[active], torch.from_numpy(chunk_id[slot[active]])
        part = decide(
            policy,
            {key: value[active] for key, value in observation.items()},
            [told[i] for i in episode],
            init_state=init_state[episode],
            chunk=count,
            device=device,
        )
        action = np.zeros((env.num_envs, *shape), dtype=np.float32)
        action[active] = part[CHUNK].numpy()
        fresh, reward, terminated, truncated, info = env.step(action)
        observation = read_observation(readers, fresh)
        answers = (reward, terminated, truncated, info["action_is_pad"], info["success"])
        part |= outcome(*(np.asarray(answer)[active] for answer in answers))
        parts.append({**part, EPISODE: torch.from_numpy(episode), CHUNK_ID: count})
        chunk_id[episode] += 1
        slot[(terminated | truncated) & (slot >= 0)] = -1
    return assemble(parts, group, told)


def _free_for_next(slot: np.ndarray, queue: deque[int], episodes: int) -> np.ndarray:
    """Give waiting episodes to free environments, in order: which of them have to be reset, ``[E]`` bool."""
    mask = np.full(len(slot), len(queue) == episodes)  # the first time all, also those that no episode will be left for
    for e in np.flatnonzero(slot < 0):
        if queue:
            slot[e], mask[e] = queue.popleft(), True
    return mask


def _renewed(before: dict[Any, Tensor], fresh: dict[Any, Tensor], mask: Tensor) -> dict[Any, Tensor]:
    """The fresh observation where ``mask [E]``, and what it was elsewhere."""
    for key, value in before.items():
        fresh[key][~mask] = value[~mask]
    return fresh
