"""The selection as TorchRL parts: a transform that trims a batch, and a sample unit for memory-mapped buffers."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data.replay_buffers import SampleUnit
from torchrl.envs.transforms import Transform

from pcm_rl.algos.transforms import in_buffer
from pcm_rl.allocation import KeepProbabilities
from pcm_rl.config import SelectionConfig
from pcm_rl.episodes import ADVANTAGE, WEIGHT
from pcm_rl.phases import Phase
from pcm_rl.rules import ALWAYS_READ
from pcm_rl.selection import Selection, check_options, select_chunks


class PCMSampler(Transform):
    """Trim a batch of complete groups to ``budget`` chunks a trajectory and write their ``"weight"``.

    Call it on a batch, or append it to a ``TensorDictReplayBuffer``, where it acts on the write path, so that the
    pixels of dropped chunks are never stored. On that path inverse transforms run in reverse order: append it *before*
    ``MCAdvantage``, which passes complete groups to it. One call counts as one step of the keep probabilities, so
    extend the buffer with all the trajectories of a step at once.

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
        """Choose the rows of ``batch [M]`` to keep; its observations are not read."""
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
        if tensordict is None or not tensordict.shape[0]:
            return None
        selection = self.select(tensordict)
        if not selection.index.numel():
            return None
        return tensordict[selection.index].set(WEIGHT, selection.weight)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Kept rows ``[R]`` of ``tensordict [M]``; inside a replay buffer (at sampling) return it unchanged."""
        if in_buffer(self):
            return tensordict
        selection = self.select(tensordict)
        return tensordict[selection.index].set(WEIGHT, selection.weight)

    def get_extra_state(self) -> dict[str, Any]:
        """Keep probabilities and the generator's state; part of ``state_dict``, also of a buffer that holds this."""
        return {"keep": self.keep.state_dict(), "generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the state of :meth:`get_extra_state`; the next draws are those of an uninterrupted run."""
        self.keep.load_state_dict(state["keep"])
        # wherever it was loaded to: a generator's state is bytes on the CPU
        self.generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8, device="cpu"))


class PCMSampleUnit(SampleUnit):
    """Chunk selection at sampling, for memory-mapped buffers: only the kept rows are read from disk.

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
        keys = (*ALWAYS_READ, ADVANTAGE, *self.sampler.rule.reads)
        candidates = storage.get(slice(0, len(storage))).select(*keys, strict=False)[index]
        selection = self.sampler.select(candidates)
        kept = index[selection.index]
        aligned = {
            key: value[selection.index]
            for key, value in info.items()
            if isinstance(value, Tensor) and value.shape[:1] == index.shape[:1]
        }
        return kept, {**info, **aligned, WEIGHT: selection.weight}


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
