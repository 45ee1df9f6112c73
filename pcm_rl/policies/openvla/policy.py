"""OpenVLA-OFT as a token policy: the interface of :class:`~pcm_rl.policies.StateTokenPolicy`, on images and text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Generator, Tensor
from torch.distributions import Distribution
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.episodes import FEATURES as CRITIC_FEATURES
from pcm_rl.episodes import INSTRUCTION, STATE
from pcm_rl.policies.checkpoint_files import CheckpointError
from pcm_rl.policies.last_layer import calls_of, critic_input
from pcm_rl.policies.observed import instructions, observed
from pcm_rl.policies.openvla.actions import ActionCodec
from pcm_rl.policies.openvla.adapter_folder import Adapters
from pcm_rl.policies.openvla.lora import save_adapters
from pcm_rl.policies.openvla.merged import save_merged
from pcm_rl.policies.openvla.model_folder import Checkpoint, load_model
from pcm_rl.policies.openvla.network.adapter import merged_adapters, ready_adapters
from pcm_rl.policies.openvla.network.model import OpenVLA
from pcm_rl.policies.openvla.prompt import Prompter

FEATURES = ("observation", "features")  # the vision towers' output, where it is recorded
IMAGES = (("observation", "image"), ("observation", "wrist_image"))  # in the order of training


class OpenVLAPolicy(VLAWrapperBase):
    """Images ``[M, 3, H, W]`` uint8 and an instruction -> ``L * D`` action tokens, all in one forward.

    Reads ``("observation", "image")`` as :class:`~pcm_rl.envs.OpenVLAImages` prepares it (a model of two images also
    ``("observation", "wrist_image")``, one that reads proprioception also ``("observation", "state")``, LIBERO's eight
    numbers) and ``"language_instruction"``. Writes ``("vla_action", "tokens") [M, L, D]`` in [0, A), ``"chunk"`` (the
    actions that LIBERO executes) and at sampling ``"log_probs"``, in float32; on request
    (:meth:`record_critic_features`) also the hidden state that decided the first action token.

    Images stay uint8 until they are on the device of the weights, where they are normalised.

    Args:
        checkpoint: From :func:`~pcm_rl.policies.openvla.open_checkpoint`.
        chunk_length: L; 8 for the published checkpoints.
        temperature: Divides the logits, in rollout and loss alike.
        statistics: Dataset whose quantiles scale the actions; None takes the only one of the checkpoint.
        dtype: Of the frozen weights.
        device: Of the weights.
        record_features: Write the output of the vision towers under ``("observation", "features") [M, P, W]``, in the
            type of the weights, and read it from there instead of running them. It is exact while no part before the
            projector is trained, and needs 7 times the memory of an image at 7B.
        merge: Add the adapters to a copy of the weights for each collection of rollouts.
        model: Weights that are in memory already; None reads those of ``checkpoint``.

    Raises:
        CheckpointError: The weights do not fit ``config.json``, or ``statistics`` names no dataset of the checkpoint.
        ImportError: The package ``tokenizers`` is missing.
        ValueError: ``temperature`` is not positive.
    """

    _records = False  # whether acting writes CRITIC_FEATURES
    source: Adapters | None = None  # adapters of others that the weights began with
    _padded = False  # whether prompts are padded to few lengths
    _acting = False  # whether a collection has the adapters at hand

    def __init__(
        self,
        checkpoint: Checkpoint,
        chunk_length: int = 8,
        *,
        temperature: float = 1.6,
        statistics: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        record_features: bool = False,
        merge: bool = False,
        model: OpenVLA | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        sizes = checkpoint.sizes
        if sizes.num_images > len(IMAGES):
            raise CheckpointError(f"{checkpoint.folder}: expected one or two images, got {sizes.num_images}")
        known = checkpoint.statistics[checkpoint.dataset(statistics)]
        codec = ActionCodec(known, sizes.action_bins)
        self._seeds: list[int] = []
        self.image_keys = IMAGES[: sizes.num_images]
        self.reads_proprio = sizes.proprio_dim > 0
        self.record_features, self.merge = record_features, merge
        if model is None:
            model = load_model(checkpoint, chunk_length * codec.action_dim, dtype=dtype, device=device)
        super().__init__(
            model,
            action_dim=codec.action_dim,
            chunk_size=chunk_length,
            action_head="tokens",
            vocab_size=sizes.action_bins,
            action_tokenizer=codec,
            output_mode="both",
            log_probs_mode="token",
            return_vla_action_container=False,
            default_interaction_type=InteractionType.RANDOM,
        )
        self.model: OpenVLA
        self.checkpoint, self.temperature, self.dtype = checkpoint, temperature, dtype
        self.prompter = Prompter(checkpoint.tokenizer)
        self.register_buffer("mean", torch.tensor(checkpoint.mean, device=device).view(6, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(checkpoint.std, device=device).view(6, 1, 1), persistent=False)
        if self.reads_proprio:
            low, high = (torch.tensor(known["proprio"][q], device=device) for q in ("q01", "q99"))
            self.register_buffer("proprio_low", low, persistent=False)
            self.register_buffer("proprio_range", high - low + 1e-8, persistent=False)

    def _update_keys(self) -> None:
        super()._update_keys()
        state = [STATE] if self.reads_proprio else []
        self.in_keys = [*self.image_keys, *state, INSTRUCTION]
        if self.record_features:
            self.out_keys.append(FEATURES)
        if self._records:
            self.out_keys.append(CRITIC_FEATURES)

    def record_critic_features(self, enabled: bool) -> None:
        """Write :data:`pcm_rl.episodes.FEATURES` when it acts, as :meth:`features` gives them, or no longer.

        They come from the forward pass that acts. Those of a batch and of its rows one by one differ by rounding, as
        the log-probs do. What ``record_features`` keeps is another thing: the vision towers' output.
        """
        self._records = enabled
        self._update_keys()

    def forward(self, tensordict: TensorDictBase, **options: Any) -> TensorDictBase:
        """Act: one forward pass of the model, and a hidden state of it where that is recorded."""
        if not self._records:
            return super().forward(tensordict, **options)
        with calls_of(self.model.language_model.model) as calls:
            out = super().forward(tensordict, **options)
        ((_, hidden),) = calls
        return out.set(CRITIC_FEATURES, critic_input(hidden[:, 0]))

    def _action_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Logits of the action tokens, divided by the temperature, ``[M, L, D, A]`` float32."""
        with self.precision():
            features = self._features(tensordict)
            prompt, length = self.prompter.batch(instructions(tensordict), padded=self._padded)
            logits = self.model(features, prompt.to(features.device), length, self._proprio(tensordict))
        return logits.unflatten(1, (self.chunk_size, self.action_dim)) / self.temperature

    def precision(self) -> contextlib.AbstractContextManager[None]:
        """Context of every forward pass: float32 adapters compute in the type of the base, as they are now.

        There is no autocast: on CUDA it would compute every norm in float32, and cast and keep its output once more for
        each layer that reads it.
        """
        if self._acting and not torch.is_grad_enabled():
            return contextlib.nullcontext()
        return ready_adapters(self.model.adapters, self.dtype)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Within it decisions are those of the weights at entry: adapters are cast once, or merged (``merge``)."""
        adapters = self.model.adapters
        self._acting = True
        try:
            with merged_adapters(adapters) if self.merge else ready_adapters(adapters, self.dtype):
                yield
        finally:
            self._acting = False

    def _features(self, tensordict: TensorDictBase) -> Tensor:
        recorded = tensordict.get(FEATURES, None) if self.record_features else None
        if recorded is not None:
            return recorded.to(self.mean.device)
        features = self.model.patch_features(self._pixels(tensordict))
        if self.record_features:
            tensordict.set(FEATURES, features.detach().to(self.dtype))
        return features

    def _pixels(self, tensordict: TensorDictBase) -> Tensor:
        """Normalised for both towers, ``[M, 6 * C, H, W]``."""
        size = self.checkpoint.sizes.image_size
        images = []
        for key in self.image_keys:
            image = observed(tensordict, key)
            if image.shape[-3:] != (3, size, size) or image.dtype != torch.uint8:
                raise ValueError(
                    f"expected {key} as [M, 3, {size}, {size}] uint8, got {tuple(image.shape)} {image.dtype}: wrap the "
                    f"environment in OpenVLAImages(env, size={size})"
                )
            unit = image.to(self.mean.device).float().div_(255.0).repeat(1, 2, 1, 1)
            images.append((unit - self.mean) / self.std)
        return torch.cat(images, 1).to(self.dtype)

    def _proprio(self, tensordict: TensorDictBase) -> Tensor | None:
        if not self.reads_proprio:
            return None
        state = observed(tensordict, STATE).to(self.mean.device)
        if state.shape[-1] != len(self.proprio_low):
            raise ValueError(
                f"expected {STATE} with {len(self.proprio_low)} numbers, got {state.shape[-1]}: with LIBERO use "
                "observation='pixels'"
            )
        return (2.0 * (state - self.proprio_low) / self.proprio_range - 1.0).clamp(-1.0, 1.0)

    @contextlib.contextmanager
    def seeded(self, seeds: Sequence[int]) -> Iterator[None]:
        """Within it, row i of a batch is sampled with ``seeds[i]``, whatever the other rows are."""
        self._seeds = list(seeds)
        try:
            yield
        finally:
            self._seeds = []

    def padded_length(self, instruction: str) -> int:
        """Length of its prompt within :meth:`padded`, ids."""
        return self.prompter.padded_length(instruction)

    @contextlib.contextmanager
    def padded(self) -> Iterator[None]:
        """Within it, prompts are padded to :meth:`padded_length`: the shape of a forward pass is that of its rows."""
        self._padded = True
        try:
            yield
        finally:
            self._padded = False

    def _sample_tokens(self, dist: Distribution, logits: Tensor) -> Tensor:
        if not self._seeds or (interaction_type() or self.default_interaction_type) != InteractionType.RANDOM:
            return super()._sample_tokens(dist, logits)
        if len(self._seeds) != len(logits):
            raise ValueError(f"expected a seed for each of {len(logits)} rows, got {len(self._seeds)}")
        # the largest of logit + Gumbel noise is a sample of the softmax (Gumbel's trick)
        noise = [
            torch.empty(logits.shape[1:]).exponential_(generator=Generator().manual_seed(seed)) for seed in self._seeds
        ]
        return (logits - torch.stack(noise).log().to(logits.device)).argmax(-1)

    @torch.no_grad()
    def features(self, tensordict: TensorDictBase) -> Tensor:
        """The last hidden state at the first action token's position, ``[M, H]`` float32."""
        with self.precision():
            features = self._features(tensordict)
            prompt, length = self.prompter.batch(instructions(tensordict), padded=self._padded)
            inputs = self.model.embed(features, prompt.to(features.device), length, self._proprio(tensordict))
            hidden: Tensor = self.model.language_model.model(*inputs)
        return critic_input(hidden[:, 0])

    def set_checkpointing(self, enabled: bool) -> None:
        """Compute the blocks again in the backward pass, or keep them."""
        self.model.set_checkpointing(enabled)

    def export(self, folder: Path, *, adapters: bool = False) -> Path:
        """Write the model in the layout of its checkpoint, or only the adapters as peft does.

        Raises:
            ValueError: If ``adapters`` is true and there are none.
        """
        if adapters:
            return save_adapters(self.model, folder, str(self.checkpoint.folder), self.source)
        return save_merged(self.model, self.checkpoint, folder, self.source)

    def row_tokens(self, tensordict: TensorDictBase) -> Tensor:
        """Length of the sequence of each row, ``[M]`` int64: its cost."""
        fixed = self.checkpoint.sizes.patches + self.reads_proprio + self.model.action_tokens + 1
        return torch.tensor([fixed + len(self.prompter.ids(text)) for text in instructions(tensordict)])
