"""OpenVLA-OFT with action tokens: images and a prompt in, the logits of a whole chunk out, in one forward.

The sequence of a row is ``[BOS][patches][rest of the prompt][L * D placeholders][</s>]``; placeholders are zero
vectors, and the logits of an action token are read one position before it. Rows with shorter prompts are padded after
``</s>``; padding is masked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcm_rl.policies.openvla.network.adapter import AdapterGroup
from pcm_rl.policies.openvla.network.language import LanguageModel
from pcm_rl.policies.openvla.network.vision import MLP, VisionBackbone, VisionTower
from pcm_rl.policies.openvla.sizes import ModelSizes

EOS = 2  # </s>
PROJECTOR_FACTOR = 4  # hidden width of the projector, in widths of its input


class OpenVLA(nn.Module):
    """The model, with the parameter names of the published checkpoints.

    Args:
        sizes: Of every part.
        action_tokens: L * D, placeholders of a chunk.
    """

    def __init__(self, sizes: ModelSizes, action_tokens: int) -> None:
        super().__init__()
        self.sizes, self.action_tokens = sizes, action_tokens
        hidden = sizes.language.hidden_size
        self.vision_backbone = VisionBackbone(sizes.towers, sizes.image_size)
        self.projector = Projector(sum(tower.width for tower in sizes.towers), hidden)
        if sizes.proprio_dim:
            self.proprio_projector = MLP(sizes.proprio_dim, hidden, hidden)  # one more token
        self.language_model = LanguageModel(sizes.language, sizes.action_bins)
        self.adapters: list[AdapterGroup] = []  # filled by add_lora; the modules themselves are in their layers' places

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations (see ``blocks.py``)."""
        for stack in (*self._towers(), self.language_model.model):
            stack.checkpointing = enabled

    def compile_blocks(self) -> None:
        """Compile the blocks for the update; decisions stay as they are (see ``blocks.py``)."""
        for stack in (*self._towers(), self.language_model.model):
            stack.compiled = True

    def _towers(self) -> tuple[VisionTower, VisionTower]:
        return self.vision_backbone.featurizer, self.vision_backbone.fused_featurizer

    def patch_features(self, pixels: Tensor) -> Tensor:
        """Normalised images ``[M, 6 * C, H, W]`` -> ``[M, C * P, W_1 + W_2]``."""
        return self.vision_backbone(pixels)

    def forward(self, features: Tensor, prompt: Tensor, length: Tensor, proprio: Tensor | None = None) -> Tensor:
        """Logits of the action tokens, ``[M, L * D, A]`` float32; arguments as :meth:`embed`'s."""
        return self.language_model(*self.embed(features, prompt, length, proprio))

    def embed(
        self, features: Tensor, prompt: Tensor, length: Tensor, proprio: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The sequence of each row.

        Args:
            features: From :meth:`patch_features`, ``[M, P, W]``.
            prompt: Token ids, BOS first and padded at the end, ``[M, N]`` int64.
            length: Ids of each prompt, ``[M]`` int64, on the CPU: it decides whether anything is padded.
            proprio: Normalised proprioception ``[M, proprio_dim]``, for a model that reads it.

        Returns:
            Embeddings ``[M, S, H]``, where the logits of the action tokens are read ``[M, L * D]`` int64, and which
            positions exist ``[M, S]`` bool, None if all do.
        """
        vision = self.projector(features)
        if proprio is not None:
            vision = torch.cat([vision, self.proprio_projector(proprio.to(vision.dtype)).unsqueeze(1)], 1)
        padded = int(length.min()) < prompt.shape[1]
        length = length.to(vision.device)
        text = self._text(prompt, length).to(vision.dtype)
        embeddings = torch.cat([text[:, :1], vision, text[:, 1:]], 1)
        # the prompt's last token: its logits are the first action's
        last = (vision.shape[1] + length - 1).unsqueeze(-1)
        positions = last + torch.arange(self.action_tokens, device=length.device)
        keep = None
        if padded:
            end = last + self.action_tokens + 1
            keep = torch.arange(embeddings.shape[1], device=length.device) <= end
        return embeddings, positions, keep

    def _text(self, prompt: Tensor, length: Tensor) -> Tensor:
        """Embeddings of prompt, placeholders and ``</s>``, ``[M, N + L * D + 1, H]``."""
        place = torch.arange(prompt.shape[1] + self.action_tokens + 1, device=prompt.device)
        ids = F.pad(prompt, (0, self.action_tokens + 1), value=EOS)
        ids = torch.where(place < length.unsqueeze(-1), ids, EOS)
        embedded = self.language_model.model.embed_tokens(ids)
        behind = place - length.unsqueeze(-1)
        return embedded.masked_fill(((behind >= 0) & (behind < self.action_tokens)).unsqueeze(-1), 0.0)


class Projector(nn.Module):
    """Vision features -> tokens of the language model: three layers with exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, PROJECTOR_FACTOR * width)
        self.fc2 = nn.Linear(PROJECTOR_FACTOR * width, hidden)
        self.fc3 = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """``[..., W]`` -> ``[..., H]``."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
