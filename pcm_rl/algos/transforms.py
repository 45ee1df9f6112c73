"""The method as TorchRL transforms: label phases and trim a batch, on a replay buffer's write path or by a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data.replay_buffers import SampleUnit
from torchrl.envs.transforms import Transform

from pcm_rl.allocation import KeepProbabilities
from pcm_rl.episodes import (
    ADVANTAGE,
    CHUNK,
    CHUNK_ID,
    DONE,
    EPISODE,
    GROUP,
    IS_PAD,
    PHASE,
    REWARD,
    SUCCESS,
    WEIGHT,
    EpisodeIndex,
    Labeller,
    check_batch,
    label_episodes,
)
from pcm_rl.phases import Phase, label_phases
from pcm_rl.selection import Selection, check_options, select_chunks


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
        return tensordict if _in_buffer(self) else self._inv_call(tensordict)


class EpisodeKeys(Transform):
    """Complete trajectories from a TorchRL collector to the schema: write the keys that are missing.

    ``("vla_action", "chunk")`` is taken from ``action_key``; ``"action_is_pad"`` from ``("next", "action_is_pad")``
    (see :func:`~pcm_rl.algos.torchrl_env`), and with neither nothing is padded; ``"episode_id"`` and ``"chunk_id"`` are
    counted from ``("next", "done")``; ``"success"`` is a positive sum of an episode's rewards. On a replay buffer's
    write path it belongs behind ``MCAdvantage``, that is, is appended before it.

    Args:
        action_key: Where the executed chunk ``[M, L, D]`` is, if not under ``("vla_action", "chunk")``.
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
        # A collector carries entries of "next" over to the root of the following row, where they are one step old.
        if ("next", IS_PAD) in present:
            tensordict.set(IS_PAD, tensordict.get(("next", IS_PAD)))
        elif IS_PAD not in present:
            tensordict.set(IS_PAD, torch.zeros(tensordict.get(CHUNK).shape[:2], dtype=torch.bool, device=done.device))
        return tensordict

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Complete ``tensordict [M]``; inside a replay buffer, where this runs at sampling, return it unchanged."""
        return tensordict if _in_buffer(self) else self._inv_call(tensordict)


class PCMSampler(Transform):
    """Trim a batch of complete groups to ``budget`` chunks a trajectory and write their ``"weight"``.

    Call it on a batch, or append it to a ``TensorDictReplayBuffer``, where it acts on the write path, so that the
    pixels of dropped chunks are never stored. On that path inverse transforms run in reverse order: append it *before*
    ``MCAdvantage``, which hands it complete groups. One call counts as one step of the keep probabilities, so extend
    the buffer with all the trajectories of a step at once.

    Reads ``("vla_action", "chunk")``, ``"action_is_pad"``, ``"phase"``, ``"success"``, ``"group_id"``,
    ``"episode_id"`` and, where it is there, ``"advantage"``; the observations are indexed, never read. Without mixed
    outcomes in a batch the keep probabilities stay as they are.

    Args:
        budget: B, chunks kept a trajectory; ``"top-advantage"`` keeps as many in all, wherever they weigh most.
        selection: ``"pcm"``, ``"random"``, ``"top-phase"``, ``"top-advantage"`` or ``"none"``; see
            :func:`pcm_rl.select_chunks`.
        padding: ``"drop"`` or ``"keep"``.
        num_phases: K.
        floor: ``p_min``.
        refresh_every: ``T_rc``.
        seed: Seed of the sampler's own generator.

    Attributes:
        stats: After each call a flat dictionary of floats: ``kept_fraction``, ``chunks_kept``, ``chunks_valid`` and for
            each phase ``score/``, ``keep_prob/``, ``candidates/`` and ``kept/`` + its label (chunks a trajectory).
    """

    def __init__(
        self,
        budget: int = 12,
        *,
        selection: str = "pcm",
        padding: str = "drop",
        num_phases: int = len(Phase),
        floor: float = 0.1,
        refresh_every: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_options(budget, selection, padding)  # now, rather than at the first batch
        self.budget, self.selection, self.padding = budget, selection, padding
        self.keep = KeepProbabilities(num_phases, floor, refresh_every)
        self.generator = torch.Generator().manual_seed(seed)
        self.stats: dict[str, float] = {}

    def select(self, batch: TensorDictBase) -> Selection:
        """Decide which rows of ``batch [M]`` to keep, without touching its observations."""
        check_batch(batch, (CHUNK, IS_PAD, PHASE, SUCCESS, GROUP, EPISODE))
        valid = ~batch.get(IS_PAD)
        selection = select_chunks(
            batch.get(CHUNK),
            batch.get(PHASE),
            batch.get(SUCCESS).reshape(-1),
            batch.get(GROUP).reshape(-1),
            batch.get(EPISODE).reshape(-1),
            self.keep,
            valid=valid,
            advantage=_advantage(batch),
            budget=self.budget,
            selection=self.selection,
            padding=self.padding,
            generator=self.generator,
        )
        self.stats = _stats(selection, int(valid.any(-1).sum()))
        return selection

    def _inv_call(self, tensordict: TensorDictBase | None) -> TensorDictBase | None:
        if tensordict is None or not tensordict.shape[0]:
            return None
        selection = self.select(tensordict)
        if not selection.index.numel():
            return None
        return tensordict[selection.index].set(WEIGHT, selection.weight)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Kept rows ``[R]`` of ``tensordict [M]``; inside a replay buffer (at sampling) return it unchanged."""
        if _in_buffer(self):
            return tensordict
        selection = self.select(tensordict)
        return tensordict[selection.index].set(WEIGHT, selection.weight)

    def get_extra_state(self) -> dict[str, Any]:
        """Keep probabilities and the generator's state; part of ``state_dict``, also of a buffer that holds this."""
        return {"keep": self.keep.state_dict(), "generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave; the next draws are those of an uninterrupted run."""
        self.keep.load_state_dict(state["keep"])
        self.generator.set_state(state["generator"])


class PCMSampleUnit(SampleUnit):
    """Chunk selection at sampling, for memory-mapped buffers: only the kept rows are ever read from disk.

    Give it to a ``TensorDictReplayBuffer`` as ``sample_unit=`` and sample the buffer's whole content (all rows of
    complete groups) with ``SamplerWithoutReplacement(shuffle=False)``; the sample has the kept rows and their
    ``"weight"``.

    Args:
        sampler: The :class:`PCMSampler` that decides; its ``stats`` are filled as usual.
    """

    def __init__(self, sampler: PCMSampler) -> None:
        self.sampler = sampler

    def expand(self, index: Any, info: dict[str, Any], storage: Any) -> tuple[Tensor, dict[str, Any]]:
        """Anchor rows ``[M]`` -> the kept ones ``[R]``, with ``info["weight"]``."""
        if isinstance(index, tuple):
            if len(index) != 1:
                raise ValueError(
                    f"expected a one-dimensional storage (one row = one chunk), got {len(index)} dimensions"
                )
            (index,) = index
        keys = (CHUNK, IS_PAD, PHASE, SUCCESS, GROUP, EPISODE, ADVANTAGE)
        small = storage.get(slice(0, len(storage))).select(*keys, strict=False)[index]
        selection = self.sampler.select(small)
        kept = index[selection.index]
        aligned = {
            key: value[selection.index]
            for key, value in info.items()
            if isinstance(value, Tensor) and value.shape[:1] == index.shape[:1]
        }
        return kept, {**info, **aligned, WEIGHT: selection.weight}


def _advantage(batch: TensorDictBase) -> Tensor | None:
    advantage = batch.get(ADVANTAGE, None)
    return None if advantage is None else advantage.reshape(-1)


def _in_buffer(transform: Transform) -> bool:
    return transform.__dict__.get("_container") is not None


def _stats(selection: Selection, valid: int) -> dict[str, float]:
    kept = selection.index.numel()
    stats = {"chunks_valid": float(valid), "chunks_kept": float(kept), "kept_fraction": kept / max(valid, 1)}
    for phase in range(selection.probs.numel()):
        label = Phase(phase).label if selection.probs.numel() == len(Phase) else str(phase)
        stats[f"score/{label}"] = float(selection.score[phase])
        stats[f"keep_prob/{label}"] = float(selection.probs[phase])
        stats[f"candidates/{label}"] = float(selection.candidates[phase])
        stats[f"kept/{label}"] = float(selection.kept[phase])
    return stats
