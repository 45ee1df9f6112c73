"""Roll out a policy on a vector of chunked environments: whole episodes, as rows in the schema."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pcm_rl.episodes import (
    CHUNK,
    CHUNK_ID,
    DONE,
    EPISODE,
    GROUP,
    IS_PAD,
    LOG_PROBS,
    REWARD,
    STATE,
    SUCCESS,
    TOKENS,
)

Policy = Callable[[TensorDictBase], TensorDictBase]


def collect_episodes(
    env: VectorEnv, policy: Policy, init_state: Tensor, group: Tensor, *, device: str | torch.device = "cpu"
) -> TensorDict:
    """One episode from each initial state, with the policy of one version throughout.

    Episodes beyond ``env.num_envs`` wait for a free environment. TorchRL's collectors are not used here: they pad
    episodes or cut them at a frame count, and their chunk step pays a success only at a chunk's last step.

    Args:
        env: Vector of environments whose action is a chunk ``[L, D]``, without autoreset; ``reset`` takes the options
            ``init_state`` and ``reset_mask``, ``step`` gives ``action_is_pad`` and ``success`` in its infos.
        policy: Writes tokens, chunk and log-probs for ``("observation", "state") [n, S]``.
        init_state: Initial state of each episode, ``[I]`` int64.
        group: Group of each episode, ``[I]`` int64.
        device: Where the policy runs; the rows stay on the CPU.

    Returns:
        ``[M]`` rows, episodes in the order asked for, each ending with ``("next", "done")``.

    Raises:
        FloatingPointError: If the policy gives a log-prob or an action that is not finite; it names initial state and
            chunk.
    """
    queue = deque(range(len(init_state)))
    slot = np.full(env.num_envs, -1)  # episode that each environment plays
    chunk_id = np.zeros(len(init_state), dtype=np.int64)
    shape = env.single_action_space.shape
    assert shape is not None
    observation = np.zeros((env.num_envs, *(env.single_observation_space.shape or ())), dtype=np.float32)
    parts: list[dict[Any, Tensor]] = []

    while True:
        _fill(env, slot, queue, init_state, observation)
        active = np.flatnonzero(slot >= 0)
        if not len(active):
            break
        episode = torch.from_numpy(slot[active])
        state = torch.from_numpy(observation[active])
        with torch.no_grad():
            out = policy(TensorDict({STATE: state}, batch_size=[len(active)]).to(device)).to("cpu")
        _check_finite(out, init_state[episode], chunk_id[slot[active]])
        action = np.zeros((env.num_envs, *shape), dtype=np.float32)
        action[active] = out.get(CHUNK).numpy()
        fresh, reward, terminated, truncated, info = env.step(action)
        observation = np.array(fresh, dtype=np.float32)
        parts.append(
            {
                STATE: state,
                CHUNK: out.get(CHUNK),
                TOKENS: out.get(TOKENS),
                LOG_PROBS: out.get(LOG_PROBS),
                IS_PAD: torch.from_numpy(np.asarray(info["action_is_pad"], dtype=bool)[active]),
                SUCCESS: torch.from_numpy(np.asarray(info["success"], dtype=bool)[active]),
                EPISODE: episode,
                CHUNK_ID: torch.from_numpy(chunk_id[slot[active]]),
                REWARD: torch.from_numpy(np.asarray(reward)[active]).float().unsqueeze(-1),
                ("next", "terminated"): torch.from_numpy(terminated[active]).unsqueeze(-1),
                ("next", "truncated"): torch.from_numpy(truncated[active]).unsqueeze(-1),
            }
        )
        chunk_id[slot[active]] += 1
        ended = (terminated | truncated) & (slot >= 0)
        slot[ended] = -1
    return _assemble(parts, group)


def _fill(env: VectorEnv, slot: np.ndarray, queue: deque[int], init_state: Tensor, observation: np.ndarray) -> None:
    """Give waiting episodes to free environments, in order."""
    mask = np.full(env.num_envs, 0 in queue)  # the first time all, also those that no episode will be left for
    for e in np.flatnonzero(slot < 0):
        if queue:
            slot[e], mask[e] = queue.popleft(), True
    if mask.any():
        states = init_state.numpy()[np.where(slot >= 0, slot, 0)]
        fresh, _ = env.reset(options={"init_state": states, "reset_mask": mask})
        observation[mask] = np.asarray(fresh)[mask]


def _check_finite(out: TensorDictBase, init_state: Tensor, chunk: np.ndarray) -> None:
    finite = torch.isfinite(out.get(LOG_PROBS)).flatten(1).all(1) & torch.isfinite(out.get(CHUNK)).flatten(1).all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise FloatingPointError(
            f"the policy gave a log-prob or an action that is not finite, in the episode from initial state "
            f"{int(init_state[row])}, chunk {int(chunk[row])}; nothing was saved since the last checkpoint"
        )


def _assemble(parts: list[dict[Any, Tensor]], group: Tensor) -> TensorDict:
    columns = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    order = (columns[EPISODE] * (columns[CHUNK_ID].max() + 1) + columns[CHUNK_ID]).argsort()
    rows = TensorDict({key: value[order] for key, value in columns.items()}, batch_size=[len(order)])
    won = torch.zeros(len(group), dtype=torch.bool)
    won[rows[EPISODE][rows[SUCCESS]]] = True
    rows[SUCCESS] = won[rows[EPISODE]]
    rows[GROUP] = group[rows[EPISODE]]
    rows[DONE] = rows["next", "terminated"] | rows["next", "truncated"]
    return rows


def episode_outcomes(rows: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Outcome and group of each episode: ``[M]`` rows -> ``success [I]``, ``group [I]``, ordered by episode id."""
    first = rows[rows.get(CHUNK_ID) == 0]
    order = first.get(EPISODE).argsort()
    return first.get(SUCCESS)[order], first.get(GROUP)[order]
