"""Shared by both ways of collecting: a decision of the policy, its outcome, and the rows made from them."""

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
)
from pcm_rl.policies.family import drawn_key
from pcm_rl.processes.messages import set_texts

Policy = Callable[[TensorDictBase], TensorDictBase]
Part = dict[NestedKey, Tensor]


def listens(policy: Policy) -> bool:
    """Whether a policy reads instructions; a text in every row would only slow down other policies."""
    return INSTRUCTION in getattr(policy, "in_keys", (INSTRUCTION,))


def decide(
    policy: Policy,
    observation: Mapping[NestedKey, Tensor],
    instructions: Sequence[str | None],
    *,
    init_state: Tensor,
    chunk: Tensor,
    device: str | torch.device,
    rows: int | None = None,
) -> Part:
    """Asks the policy for a chunk in each of n environments.

    Only what the policy writes is copied back from ``device``.

    Args:
        policy: Writes what it draws, chunk and log-probs.
        observation: Keys of the schema ``[n, ...]``.
        instructions: One for each environment, or Nones.
        init_state: Initial states of the episodes, ``[n]``.
        chunk: Number of chunks executed so far, ``[n]``.
        device: Where the policy runs.
        rows: Rows that the policy gets, at least n; the first one fills the rest. None is n.

    Returns:
        The observation, and the policy's entries: its draw, chunk and log-probs ``[n, L, D]`` and the rest of its
        ``out_keys``, on the CPU.

    Raises:
        FloatingPointError: A log-prob or an action is not finite.
    """
    number = len(instructions)
    more = 0 if rows is None else rows - number
    inputs = TensorDict({key: fill_up(value, more) for key, value in observation.items()}, [number + more])
    if instructions[0] is not None and listens(policy):
        inputs.set(INSTRUCTION, NonTensorStack(*instructions, *[instructions[0]] * more))
    keys = dict.fromkeys((CHUNK, drawn_key(policy), LOG_PROBS, *getattr(policy, "out_keys", ())))
    with torch.no_grad():
        out = policy(inputs.to(device)).select(*keys, strict=False)
    out = (out[:number] if more else out).to("cpu")
    finite = torch.isfinite(out.get(LOG_PROBS)).flatten(1).all(1) & torch.isfinite(out.get(CHUNK)).flatten(1).all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        task = f" ({instructions[row]})" if instructions[row] is not None else ""
        raise FloatingPointError(
            f"the policy gave a log-prob or an action that is not finite, in the episode from initial state "
            f"{int(init_state[row])}, chunk {int(chunk[row])}{task}; nothing was saved since the last checkpoint"
        )
    return {**observation, **{key: out.get(key) for key in keys}}


def fill_up(values: Tensor, more: int) -> Tensor:
    """``[n, ...]`` -> ``[n + more, ...]``, the first one repeated."""
    return torch.cat([values, values[:1].expand(more, *values.shape[1:])]) if more else values


def outcome(reward: Any, terminated: Any, truncated: Any, action_is_pad: Any, success: Any) -> Part:
    """The outcome of a chunk in each of n environments: arrays ``[n]``, ``action_is_pad [n, L]``.

    Raises:
        ValueError: A success is not binary.
    """
    succeeded = np.asarray(success)
    if succeeded.dtype != bool and not np.isin(succeeded.astype(float), (0.0, 1.0)).all():
        raise ValueError(f"success is {succeeded.tolist()}; expected True or False, 1 or 0, for each environment")
    return {
        IS_PAD: torch.from_numpy(np.asarray(action_is_pad, dtype=bool)),
        SUCCESS: torch.from_numpy(succeeded.astype(bool)),
        REWARD: torch.from_numpy(np.asarray(reward)).float().unsqueeze(-1),
        ("next", "terminated"): torch.from_numpy(np.asarray(terminated)).unsqueeze(-1),
        ("next", "truncated"): torch.from_numpy(np.asarray(truncated)).unsqueeze(-1),
    }


def assemble(parts: Sequence[Part], group: Tensor, instructions: Sequence[str | None]) -> TensorDict:
    """Rows of whole episodes, in order.

    Args:
        parts: Each ``[n]`` rows with :data:`EPISODE` and :data:`CHUNK_ID`, of one episode or several. They are emptied,
            so that images are not held twice.
        group: Group of each episode, ``[I]``.
        instructions: One for each episode, ``[I]``, or Nones.

    Returns:
        ``[M]`` rows; ``success`` is that of the whole episode.
    """
    episode, chunk_id = (torch.cat([part[key] for part in parts]) for key in (EPISODE, CHUNK_ID))
    order = (episode * (chunk_id.max() + 1) + chunk_id).argsort()
    rows = TensorDict({}, batch_size=[len(order)])
    for key in list(parts[0]):
        rows.set(key, torch.cat([part.pop(key) for part in parts])[order])
    success = torch.zeros(len(group), dtype=torch.bool)
    success[rows[EPISODE][rows[SUCCESS]]] = True
    rows[SUCCESS] = success[rows[EPISODE]]
    rows[GROUP] = group[rows[EPISODE]]
    rows[DONE] = rows["next", "terminated"] | rows["next", "truncated"]
    texts = [instructions[i] for i in rows[EPISODE].tolist()]
    return rows if texts[0] is None else set_texts(rows, {INSTRUCTION: texts})


def episode_outcomes(rows: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Outcome and group of each episode: ``[M]`` rows -> ``success [I]``, ``group [I]``, ordered by episode id."""
    first = (rows.get(CHUNK_ID) == 0).nonzero().flatten()
    first = first[rows.get(EPISODE)[first].argsort()]
    return rows.get(SUCCESS)[first], rows.get(GROUP)[first]


def rollout_metrics(rows: TensorDictBase, groups: int) -> dict[str, float]:
    """A summary of a step's rollouts, as columns of ``metrics.csv``.

    Args:
        rows: ``[M]`` rows of all processes.
        groups: Number of groups that were requested.
    """
    success, group = episode_outcomes(rows)
    collected = len(group.unique())
    mixed = set(group[success].tolist()) & set(group[~success].tolist())
    return {
        "success": float(success.float().mean()),
        "successes": int(success.sum()),
        "trajectories": len(success),
        "groups": collected,
        "groups_mixed": len(mixed),
        "groups_dropped": groups - collected,
        "env_steps": int((~rows.get(IS_PAD)).sum()),
    }
