"""The selection as TorchRL parts: a transform that trims a batch, and a sample unit for memory-mapped buffers."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import LazyMemmapStorage, ReplayBuffer, TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers import SampleUnit
from torchrl.envs.transforms import Transform

from pcm_rl.algos.buffers import check_nothing_needs_episodes_after, check_texts, reading_buffer, texts
from pcm_rl.algos.transforms import unchosen
from pcm_rl.algos.weights import over_the_buffer, trajectories_per_row
from pcm_rl.allocation import KeepProbabilities
from pcm_rl.config import SelectionConfig
from pcm_rl.episodes import (
    ADVANTAGE,
    CHUNK_ID,
    DONE,
    TRAJECTORIES,
    WEIGHT,
)
from pcm_rl.phases import Phase
from pcm_rl.rules import ALWAYS_READ
from pcm_rl.selection import Selection, check_options, select_chunks


class PCMSampler(Transform):
    """Trim a batch of complete groups to ``budget`` chunks a trajectory and write their ``"weight"``.

    Call it on a batch, or append it to a replay buffer, where it acts on the write path, so that the pixels of dropped
    chunks are never stored. On that path transforms run in reverse order: append it *first*, before ``LabelPhases``,
    ``MCAdvantage`` (which passes complete groups on) and ``EpisodeKeys``.

    A call chooses among the groups that it gets, and counts as one step of the keep probabilities. A buffer may be
    written to by one call or by several, such as one a group: read through this transform, its rows have the weights of
    a mean over all trajectories that it holds. ``"trajectories_per_row"`` is there for that.

    Reads ``("vla_action", "chunk")``, ``"action_is_pad"``, ``"phase"``, ``"success"``, ``"group_id"``,
    ``"episode_id"``, ``"advantage"`` if present, and the entries that the rule reads; the observations are only
    indexed. Without mixed outcomes in a batch the keep probabilities stay as they are.

    Args:
        budget: B, chunks kept per trajectory; a rule with a budget for the batch keeps as many in total.
        selection: A name in :data:`pcm_rl.rules.RULES`, or a user's rule as ``module:function``.
        padding: ``"drop"`` or ``"keep"``.
        num_phases: K.
        floor: ``p_min``.
        refresh_every: ``T_rc``.
        seed: Seed of the sampler's generator.

    Attributes:
        stats: After each call a flat dictionary of floats: ``kept_fraction``, ``chunks_kept``, ``chunks_valid`` and for
            each phase ``score/``, ``keep_prob/``, ``candidates/`` and ``kept/`` + its label (chunks per trajectory).
    """

    needs_whole_episodes = True

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
        self.rule = check_options(budget, selection, padding)  # an error now, and not at the first batch
        self.budget, self.selection, self.padding = budget, selection, padding
        self.keep = KeepProbabilities(num_phases, floor, refresh_every)
        self.generator = torch.Generator().manual_seed(seed)
        self.stats: dict[str, float] = {}

    @classmethod
    def of(cls, section: SelectionConfig, *, seed: int = 0) -> PCMSampler:
        """The sampler that the section ``selection`` of a configuration describes.

        Raises:
            ConfigError: If ``selection.name`` is no rule.
        """
        _ = section.rule  # an error names the key
        return cls(
            section.budget,
            selection=section.name,
            padding=section.padding,
            floor=section.floor,
            refresh_every=section.refresh_every,
            seed=seed,
        )

    def select(self, batch: TensorDictBase) -> Selection:
        """Choose the rows of ``batch [M]``, of whole episodes, to keep; its observations are not read."""
        selection = select_chunks(
            batch,
            self.keep,
            budget=self.budget,
            selection=self.selection,
            padding=self.padding,
            generator=self.generator,
        )
        self.stats = _stats(selection)
        return selection

    def _inv_call(self, tensordict: TensorDictBase | None) -> TensorDictBase | None:
        if tensordict is None or not tensordict.numel():
            return None
        if reading_buffer() is None:
            check_nothing_needs_episodes_after(self)
        rows = self.forward(tensordict)
        return rows if len(rows) else None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Kept rows ``[R]`` of ``tensordict [M]``; what a buffer reads stays, with weights over the whole buffer.

        Raises:
            ValueError: If chunks were chosen from the rows already, or on a write path in the wrong order; and what
                :func:`~pcm_rl.select_chunks` raises.
        """
        buffer = reading_buffer()
        if buffer is not None:
            return over_the_buffer(tensordict, buffer, self)
        rows = unchosen(tensordict, "PCMSampler")
        selection = self.select(rows)
        per_row = trajectories_per_row(rows, selection, self.rule)
        kept = rows[selection.index].set(WEIGHT, selection.weight)
        return kept.set(TRAJECTORIES, torch.full_like(selection.weight, per_row))

    def get_extra_state(self) -> dict[str, Any]:
        """Keep probabilities and the generator's state; part of ``state_dict``, also of a buffer that holds this."""
        return {"keep": self.keep.state_dict(), "generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the state of :meth:`get_extra_state`; the next draws are those of an uninterrupted run."""
        self.keep.load_state_dict(state["keep"])
        # wherever it was loaded to: a generator's state is bytes on the CPU
        self.generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8, device="cpu"))


class PCMSampleUnit(SampleUnit, Transform):
    """Chunk selection at sampling, for memory-mapped buffers: only the kept rows are read from disk.

    Give it to a ``TensorDictReplayBuffer`` as ``sample_unit=`` and sample the buffer's whole content (all rows of
    complete groups) with a ``SamplerWithoutReplacement``; the sample has the kept rows and their ``"weight"``. Give it
    as ``transform=`` too: it changes nothing there, and the buffer's ``state_dict`` holds the keep probabilities and
    the generator (a unit that is no transform becomes one when it is first sampled from).

    Args:
        sampler: The :class:`PCMSampler` that decides; its ``stats`` are filled as usual.
    """

    def __init__(self, sampler: PCMSampler) -> None:
        super().__init__()
        self.sampler = sampler

    def expand(self, index: Any, info: dict[str, Any], storage: Any) -> tuple[Tensor, dict[str, Any]]:
        """Anchor rows ``[M]`` -> the kept ones ``[R]``, with ``info["weight"]``.

        Raises:
            ValueError: If the buffer is no ``TensorDictReplayBuffer``, which alone hands on the weights, its storage
                has no columns, or the anchors are not all of its rows, each once.
        """
        buffer = self._checked(reading_buffer(), storage)
        index = _all_rows(index, len(storage))
        if self not in buffer.transform.modules():
            buffer.append_transform(self)
        order = index.argsort()
        keys = (*ALWAYS_READ, ADVANTAGE, CHUNK_ID, DONE, *self.sampler.rule.reads)
        selection = self.sampler.select(storage.get(slice(0, len(storage))).select(*keys, strict=False))
        aligned = {
            key: value[order][selection.index]
            for key, value in info.items()
            if isinstance(value, Tensor) and value.shape[:1] == index.shape[:1]
        }
        return selection.index, {**info, **aligned, WEIGHT: selection.weight}

    def _checked(self, buffer: ReplayBuffer | None, storage: Any) -> TensorDictReplayBuffer:
        if not isinstance(buffer, TensorDictReplayBuffer):
            raise ValueError(
                f"PCMSampleUnit is in a {type(buffer).__name__}, whose samples lack the weights: expected a "
                "TensorDictReplayBuffer"
            )
        if not isinstance(storage, TensorStorage) or storage.ndim != 1:
            raise ValueError(
                f"PCMSampleUnit reads columns of rows (one row = one chunk), got a {type(storage).__name__} of "
                f"{storage.ndim} dimensions: expected LazyMemmapStorage or LazyTensorStorage of one dimension"
            )
        # texts that were written through this transform were compared then
        written_through = self in buffer.transform.modules()
        if isinstance(storage, LazyMemmapStorage) and not written_through and any(texts(storage.get(slice(0, 1)))):
            raise ValueError(
                "the storage holds texts, of which a LazyMemmapStorage keeps the first for all rows: give the "
                "PCMSampleUnit as transform= too, which compares what is written, or use a LazyTensorStorage"
            )
        return buffer

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """``tensordict`` as it is."""
        return tensordict

    def _inv_call(self, tensordict: TensorDictBase | None) -> TensorDictBase | None:
        if tensordict is not None:
            check_texts(tensordict)
        return tensordict


def _all_rows(index: Any, rows: int) -> Tensor:
    """The anchors ``[M]``, refused unless they are all rows of a storage, each once."""
    anchors: Tensor = torch.as_tensor(index[0] if isinstance(index, tuple) else index).reshape(-1)
    distinct = anchors.unique().numel()
    if len(anchors) != rows or distinct != rows:
        raise ValueError(
            f"PCMSampleUnit got {len(anchors)} rows, {distinct} of them distinct, of the {rows} stored ones: groups "
            "must be complete. Sample the whole buffer: sampler=SamplerWithoutReplacement(), batch_size=len(buffer)"
        )
    return anchors


def _stats(selection: Selection) -> dict[str, float]:
    kept, full = selection.index.numel(), selection.full
    stats = {"chunks_valid": float(full), "chunks_kept": float(kept), "kept_fraction": kept / max(full, 1)}
    for phase in range(selection.probs.numel()):
        label = Phase(phase).label if selection.probs.numel() == len(Phase) else str(phase)
        stats[f"score/{label}"] = float(selection.score[phase])
        stats[f"keep_prob/{label}"] = float(selection.probs[phase])
        stats[f"candidates/{label}"] = float(selection.candidates[phase])
        stats[f"kept/{label}"] = float(selection.kept[phase])
    return stats
