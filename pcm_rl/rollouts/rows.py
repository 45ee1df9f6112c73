"""What both ways of collecting share: a decision of the policy, what came of it, and rows made of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor

from pcm_rl.episodes import (
    CHUNK,
    CHUNK_ID,
    DONE,
    EPISODE,
    GROUP,
    INSTRUCTION,
    IS_PAD,
    LOG_PROBS,
    REWARD,
    SUCCESS,
    TOKENS,
)
from pcm_rl.processes.messages import set_texts

Policy = Callable[[TensorDictBase], TensorDictBase]
Part = dict[NestedKey, Tensor]


def listens(policy: Policy) -> bool:
    """Whether a policy reads instructions; another one would only be slowed down by a text in every row."""
    return INSTRUCTION in getattr(policy, "in_keys", (INSTRUCTION,))


def decide(
    policy: Policy,
    observation: Mapping[NestedKey, Tensor],
    told: Sequence[str | None],
    *,
    init_state: Tensor,
    chunk: Tensor,
    device: str | torch.device,
) -> Part:
    """Asks the policy for a chunk in each of n environments.

    Args:
        policy: Writes tokens, chunk and log-probs.
        observation: Keys of the schema ``[n, ...]``.
        told: Instruction of each, or Nones.
        init_state: Where the episodes started, ``[n]``.
        chunk: How many chunks they have had, ``[n]``.
        device: Where the policy runs.

    Returns:
        The observation, and what the policy writes: tokens, chunk and log-probs ``[n, L, D]`` and whatever else stands
        in its ``out_keys``, on the CPU.

    Raises:
        FloatingPointError: A log-prob or an action is not finite.
    """
    seen = TensorDict(dict(observation), batch_size=[len(told)])
    if told[0] is not None and listens(policy):
        seen.set(INSTRUCTION, NonTensorStack(*told))
    with torch.no_grad():
        out = policy(seen.to(device)).to("cpu")
    finite = torch.isfinite(out.get(LOG_PROBS)).flatten(1).all(1) & torch.isfinite(out.get(CHUNK)).flatten(1).all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        task = f" ({told[row]})" if told[row] is not None else ""
        raise FloatingPointError(
            f"the policy gave a log-prob or an action that is not finite, in the episode from initial state "
            f"{int(init_state[row])}, chunk {int(chunk[row])}{task}; nothing was saved since the last checkpoint"
        )
    written = dict.fromkeys((CHUNK, TOKENS, LOG_PROBS, *getattr(policy, "out_keys", ())))
    return {**observation, **{key: out.get(key) for key in written}}


def outcome(reward: Any, terminated: Any, truncated: Any, action_is_pad: Any, success: Any) -> Part:
    """What came of a chunk in each of n environments: arrays ``[n]``, ``action_is_pad [n, L]``."""
    return {
        IS_PAD: torch.from_numpy(np.asarray(action_is_pad, dtype=bool)),
        SUCCESS: torch.from_numpy(np.asarray(success, dtype=bool)),
        REWARD: torch.from_numpy(np.asarray(reward)).float().unsqueeze(-1),
        ("next", "terminated"): torch.from_numpy(np.asarray(terminated)).unsqueeze(-1),
        ("next", "truncated"): torch.from_numpy(np.asarray(truncated)).unsqueeze(-1),
    }


def assemble(parts: Sequence[Part], group: Tensor, told: Sequence[str | None]) -> TensorDict:
    """Rows of whole episodes, in order.

    Args:
        parts: Each ``[n]`` rows with :data:`EPISODE` and :data:`CHUNK_ID`, of one episode or several. They are emptied,
            so that images are not held twice.
        group: Group of each episode, ``[I]``.
        told: Instruction of each episode, ``[I]``, or Nones.

    Returns:
        ``[M]`` rows, ``success`` that of the whole episode.
    """
    episode, chunk_id = (torch.cat([part[key] for part in parts]) for key in (EPISODE, CHUNK_ID))
    order = (episode * (chunk_id.max() + 1) + chunk_id).argsort()
    rows = TensorDict({}, batch_size=[len(order)])
    for key in list(parts[0]):
        rows.set(key, torch.cat([part.pop(key) for part in parts])[order])
    won = torch.zeros(len(group), dtype=torch.bool)
    won[rows[EPISODE][rows[SUCCESS]]] = True
    rows[SUCCESS] = won[rows[EPISODE]]
    rows[GROUP] = group[rows[EPISODE]]
    rows[DONE] = rows["next", "terminated"] | rows["next", "truncated"]
    said = [told[i] for i in rows[EPISODE].tolist()]
    return rows if said[0] is None else set_texts(rows, {INSTRUCTION: said})


def episode_outcomes(rows: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Outcome and group of each episode: ``[M]`` rows -> ``success [I]``, ``group [I]``, ordered by episode id."""
    first = (rows.get(CHUNK_ID) == 0).nonzero().flatten()
    first = first[rows.get(EPISODE)[first].argsort()]
    return rows.get(SUCCESS)[first], rows.get(GROUP)[first]


def rollout_metrics(rows: TensorDictBase, signal: Tensor, groups: int) -> dict[str, float]:
    """What a step's rollouts were, as columns of ``metrics.csv``.

    Args:
        rows: ``[M]`` rows of all processes.
        signal: ``[M]`` bool, rows of groups with both outcomes.
        groups: Groups that were asked for.
    """
    success, group = episode_outcomes(rows)
    found = len(group.unique())
    return {
        "success": float(success.float().mean()),
        "trajectories": len(success),
        "groups": found,
        "groups_mixed": len(rows.get(GROUP)[signal].unique()),
        "groups_dropped": groups - found,
        "env_steps": int((~rows.get(IS_PAD)).sum()),
    }
