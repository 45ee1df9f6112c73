"""Preparation of a batch for the selection, as TorchRL transforms: the schema's keys, and phases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.envs.transforms import Transform

from pcm_rl.episodes import (
    CHUNK,
    CHUNK_ID,
    DONE,
    EPISODE,
    IS_PAD,
    PHASE,
    REWARD,
    SUCCESS,
    EpisodeIndex,
    Labeller,
    check_batch,
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
        if tensordict is None:
            return None
        check_batch(tensordict, (CHUNK, IS_PAD, EPISODE))
        return tensordict.set(PHASE, label_episodes(tensordict, self.labeller, **self.options))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Label ``tensordict [M]``; inside a replay buffer, where this runs at sampling, return it unchanged."""
        return tensordict if in_buffer(self) else self._inv_call(tensordict)


class EpisodeKeys(Transform):
    """Complete trajectories from a TorchRL collector to the schema: write the keys that are missing.

    ``("vla_action", "chunk")`` is taken from ``action_key``; ``"action_is_pad"`` from ``("next", "action_is_pad")``
    (see :func:`~pcm_rl.algos.torchrl_env`), and without both nothing is padded; ``"episode_id"`` and ``"chunk_id"`` are
    counted from ``("next", "done")``; ``"success"`` is a positive sum of an episode's rewards. On a replay buffer's
    write path it runs after ``MCAdvantage``: append it before.

    Args:
        action_key: Key of the executed chunk ``[M, L, D]``, if it is not ``("vla_action", "chunk")``.
    """

    def __init__(self, action_key: NestedKey = "action") -> None:
        super().__init__()
        self.action_key = action_key
        self._episodes = 0  # so that ids stay unique over the buffer's life

    def _inv_call(self, tensordict: TensorDictBase | None) -> TensorDictBase | None:
        if tensordict is None:
            return None
        check_batch(tensordict, (DONE,))
        present = set(tensordict.keys(include_nested=True))
        done = tensordict.get(DONE).reshape(-1)
        if len(done) and not bool(done[-1]):
            raise ValueError("the last row is not done: expected complete trajectories, one after the other")
        ends = done.cumsum(0)
        row = ends - done.long()  # the trajectory of each row, from 0
        if EPISODE not in present:
            tensordict.set(EPISODE, self._episodes + row)
            self._episodes += int(ends[-1]) if len(done) else 0
        if CHUNK_ID not in present:
            tensordict.set(CHUNK_ID, EpisodeIndex(row).column)
        if SUCCESS not in present:
            reward = tensordict.get(REWARD).reshape(-1).double()
            total = reward.new_zeros(int(ends[-1]) if len(done) else 0).index_add_(0, row, reward)
            tensordict.set(SUCCESS, (total > 0)[row])
        if CHUNK not in present:
            tensordict.set(CHUNK, tensordict.get(self.action_key))
        # A collector copies entries of "next" to the root of the following row, where they are one step old.
        if ("next", IS_PAD) in present:
            tensordict.set(IS_PAD, tensordict.get(("next", IS_PAD)))
        elif IS_PAD not in present:
            tensordict.set(IS_PAD, torch.zeros(tensordict.get(CHUNK).shape[:2], dtype=torch.bool, device=done.device))
        return tensordict

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Complete ``tensordict [M]``; inside a replay buffer, where this runs at sampling, return it unchanged."""
        return tensordict if in_buffer(self) else self._inv_call(tensordict)


def in_buffer(transform: Transform) -> bool:
    """Whether a transform belongs to a replay buffer (or to another transform), where ``forward`` runs at sampling."""
    return transform.__dict__.get("_container") is not None
