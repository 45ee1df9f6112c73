"""Preparation of a batch for the selection, as TorchRL transforms: the schema's keys, and phases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.envs.transforms import Transform

from pcm_rl.algos.buffers import check_texts, reading_buffer
from pcm_rl.algos.trajectories import trajectory_success, whole_trajectories
from pcm_rl.episodes import (
    CHUNK,
    CHUNK_ID,
    DONE,
    EPISODE,
    IS_PAD,
    PHASE,
    SUCCESS,
    WEIGHT,
    EpisodeIndex,
    Labeller,
    check_batch,
    check_order,
    label_episodes,
)
from pcm_rl.phases import label_phases


class LabelPhases(Transform):
    """Write the phase of every chunk under ``"phase"``.

    Works on whole episodes: called on a batch ``[M]`` in the schema, or on a replay buffer's write path. Data sampled
    from the buffer pass through unchanged.

    Args:
        labeller: See :func:`pcm_rl.episodes.label_episodes`.
        gripper_index: Action dimension that commands the gripper.
        close_above: Commands strictly above close.
        closed: Callable on actions where a threshold on one dimension is not enough.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from pcm_rl.algos import LabelPhases
        >>> episode = TensorDict({
        ...     "vla_action": {"chunk": torch.tensor([-1.0, 1.0, -1.0]).view(3, 1, 1).expand(3, 8, 7)},
        ...     "action_is_pad": torch.zeros(3, 8, dtype=torch.bool),
        ...     "episode_id": torch.zeros(3, dtype=torch.int64),
        ... }, batch_size=[3])
        >>> LabelPhases()(episode)["phase"]  # approach, active-grip, release-ramp
        tensor([3, 0, 2])
    """

    needs_whole_episodes = True

    def __init__(
        self,
        labeller: Labeller = label_phases,
        *,
        gripper_index: int = -1,
        close_above: float = 0.0,
        closed: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.labeller = labeller
        self.options: dict[str, Any] = {"gripper_index": gripper_index, "close_above": close_above, "closed": closed}

    def _inv_call(self, tensordict: TensorDictBase | None) -> TensorDictBase | None:
        return None if tensordict is None else self.forward(tensordict)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Label ``tensordict [M]``, in place unless it is locked; what a buffer reads passes through unchanged."""
        if reading_buffer() is not None:
            return tensordict
        check_batch(tensordict, (CHUNK, IS_PAD, EPISODE))
        rows = unchosen(tensordict, "LabelPhases")
        return rows.set(PHASE, label_episodes(rows, self.labeller, **self.options))


class EpisodeKeys(Transform):
    """Complete trajectories from a TorchRL collector to the schema: write the keys that are missing.

    Rows ``[M]``, or ``[B, T]`` with padding marked by ``("collector", "mask")``, become ``[M]`` without padding.
    ``("vla_action", "chunk")`` is taken from ``action_key``; ``"action_is_pad"`` and ``"success"`` from ``"next"``
    wherever they are there (see :func:`~pcm_rl.algos.torchrl_env`), since a collector copies entries of ``"next"`` to
    the root of the following row, where they are one step old. Without any ``"success"``, a positive reward that is
    paid once is a success; without any ``"action_is_pad"`` nothing is padded. ``"episode_id"`` and ``"chunk_id"`` are
    counted from ``("next", "done")``; ids go on over calls and after a restore.

    On a replay buffer's write path it runs first: append it last.

    Args:
        action_key: Key of the executed chunk ``[M, L, D]``, if it is not ``("vla_action", "chunk")``.
        decode: What is under that key -> chunks ``[M, L, D]``, such as a tokenizer's ``decode``; None: it is one.

    Raises:
        ValueError: If a trajectory is cut, if its rows are not in order, or if the rewards do not tell the outcome.
    """

    needs_whole_episodes = True

    def __init__(self, action_key: NestedKey = "action", *, decode: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.action_key, self.decode = action_key, decode
        self._episodes = 0  # so that ids stay unique over the buffer's life

    def _inv_call(self, tensordict: TensorDictBase | None) -> TensorDictBase | None:
        return None if tensordict is None else self.forward(tensordict)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Complete ``tensordict``, in place if it is ``[M]``; what a buffer reads passes through unchanged."""
        if reading_buffer() is not None:
            return tensordict
        return self._complete(whole_trajectories(unchosen(tensordict, "EpisodeKeys")))

    def _complete(self, rows: TensorDictBase) -> TensorDictBase:
        present = set(rows.keys(include_nested=True))
        done = rows.get(DONE).reshape(-1)
        ends = done.cumsum(0)
        trajectory, count = ends - done.long(), int(ends[-1]) if len(done) else 0
        if EPISODE not in present:
            rows.set(EPISODE, self._episodes + trajectory)
        if count:
            self._episodes = max(self._episodes, int(rows.get(EPISODE).max()) + 1)
        if CHUNK_ID not in present:
            rows.set(CHUNK_ID, EpisodeIndex(trajectory).column)
        check_order(rows, EpisodeIndex(rows.get(EPISODE).reshape(-1)))
        if ("next", SUCCESS) in present or SUCCESS not in present:
            rows.set(SUCCESS, trajectory_success(rows, trajectory, count))
        if CHUNK not in present:
            acted = rows.get(self.action_key)
            rows.set(CHUNK, acted if self.decode is None else self.decode(acted))
        if ("next", IS_PAD) in present:
            rows.set(IS_PAD, rows.get(("next", IS_PAD)))
        elif IS_PAD not in present:
            rows.set(IS_PAD, torch.zeros(rows.get(CHUNK).shape[:2], dtype=torch.bool, device=done.device))
        return rows

    def get_extra_state(self) -> dict[str, Any]:
        """The next free ``"episode_id"``; part of ``state_dict``, also of a buffer that holds this."""
        return {"episodes": self._episodes}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the state of :meth:`get_extra_state`."""
        self._episodes = int(state["episodes"])


def unchosen(rows: TensorDictBase, name: str) -> TensorDictBase:
    """Rows that may be written to: a copy without the data where they are locked.

    Raises:
        ValueError: If chunks were chosen from them already, or a memory-mapped storage would lose their texts.
    """
    if WEIGHT in rows.keys():
        raise ValueError(
            f"{name} needs whole episodes, but the rows have a {WEIGHT!r}: PCMSampler has chosen among them. Call it "
            "before PCMSampler; in a buffer, append it after PCMSampler"
        )
    check_texts(rows)
    return rows.copy() if rows.is_locked else rows
