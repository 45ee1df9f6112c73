"""pi0 as a policy that draws numbers: one of its denoising steps adds noise, and has a log-prob."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Generator, Tensor, nn
from torch.distributions import Beta, Normal
from torch.nn.functional import pad

from pcm_rl.episodes import (
    CHUNK,
    DENOISED,
    DENOISING_STEP,
    FEATURES,
    IMAGE,
    INSTRUCTION,
    IS_PAD,
    LOG_PROBS,
    NOISY,
    STATE,
)
from pcm_rl.inputs import entry
from pcm_rl.policies import flow
from pcm_rl.policies.observed import instructions, observed
from pcm_rl.policies.pi0.export import save_policy_folder
from pcm_rl.policies.pi0.model_folder import Checkpoint, load_model, load_tokenizer
from pcm_rl.policies.pi0.parts import add_lora, train_part
from pcm_rl.policies.pi0.prefix import Prefix, read_prefix, velocity_of
from pcm_rl.policies.pi0.prompt import Prompter
from pcm_rl.policies.pi0.statistics import Statistics

IMAGES = (IMAGE, ("observation", "wrist_image"))  # in the order of the cameras
EPS = 1e-8  # added to deviations, as PI0Processor does


class Pi0Policy(nn.Module):
    """Images, state and an instruction -> a chunk, by flow matching with one random denoising step.

    Reads ``("observation", "image") [M, 3, H, W]`` uint8, with two cameras also ``("observation", "wrist_image")``,
    ``("observation", "state") [M, S]`` and ``"language_instruction"``. Writes ``("vla_action", "chunk") [M, L, D]``
    float32 in the environment's units, clipped into its box, and of the random step what it began from, what it drew
    ``[M, L, D]``, its number and its log-probs, all normalised and float32. Of the model's horizon of H steps of W
    numbers all are denoised, but only the first L steps and D numbers are executed, and only they have log-probs.

    Images stay uint8 until they are on the device of the weights. The VLM reads an observation once; its keys and
    values serve all denoising steps, and in the update the one that is computed again. Recorded they would be 18 kB a
    token at full size, 10 MB for a decision with two cameras.

    Args:
        checkpoint: From :func:`~pcm_rl.policies.pi0.open_checkpoint`, with statistics.
        chunk_length: L.
        low: Lower bounds of the environment's actions ``[L, D]`` or ``[D]``.
        high: Upper bounds.
        cameras: 1 or 2.
        steps: Denoising steps; None takes the checkpoint's.
        noise_level: Of the random step; positive.
        train: ``expert``, all but the VLM; ``all``; or ``lora``.
        lora: ``rank``, ``alpha`` and ``targets`` of the adapters.
        dtype: Of the frozen weights, and of what is computed. Trained weights are float32.
        device: Of the weights.

    Raises:
        CheckpointError: The weights do not fit ``config.json``, or the tokenizer is another model's.
        ImportError: transformers or peft is missing.
        ValueError: The checkpoint has no statistics, there is no step or no noise, or no layer matches
            ``lora["targets"]``.
    """

    drawn_key = DENOISED
    action_low: Tensor
    action_high: Tensor
    action_mean: Tensor
    action_std: Tensor
    state_mean: Tensor
    state_std: Tensor
    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        checkpoint: Checkpoint,
        chunk_length: int,
        *,
        low: Tensor,
        high: Tensor,
        cameras: int = 1,
        steps: int | None = None,
        noise_level: float = 0.5,
        train: str = "expert",
        lora: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        statistics, config = checkpoint.statistics, checkpoint.config
        if statistics is None:
            raise ValueError(f"{checkpoint.folder} has no statistics of states and actions")
        self.checkpoint, self.dtype, self.noise_level = checkpoint, dtype, noise_level
        self.steps = config.num_inference_steps if steps is None else steps
        flow.check_chain(self.steps, noise_level)
        self.chunk_size, self.action_dim = chunk_length, len(statistics.actions_mean)
        self.horizon, self.width = config.chunk_size, config.max_action_dim
        self.image_keys: list[NestedKey] = list(IMAGES[:cameras])
        self.in_keys: list[NestedKey] = [*self.image_keys, STATE, INSTRUCTION]
        self.dist_keys: list[NestedKey] = [*self.in_keys, NOISY, DENOISING_STEP]
        self.out_keys: list[NestedKey] = [NOISY, DENOISED, DENOISING_STEP, CHUNK, LOG_PROBS]
        self.prompter = Prompter(load_tokenizer(checkpoint), cameras * checkpoint.image_tokens)
        self.model: Any = load_model(checkpoint)
        train_part(self.model, "none" if train == "lora" else train, dtype)
        # in a list, so that its parameters have one name only
        self._adapters = [add_lora(self.model, **(lora or {}))] if train == "lora" else []
        self.model.train()  # without dropout; transformers computes blocks again in this mode only
        self._seeds: list[int] = []
        self._set_numbers(statistics, low, high)
        self.to(device)

    def _set_numbers(self, statistics: Statistics, low: Tensor, high: Tensor) -> None:
        shape = (self.chunk_size, self.action_dim)
        self.register_buffer("action_low", low.float().expand(shape).contiguous())
        self.register_buffer("action_high", high.float().expand(shape).contiguous())
        for name, value in statistics.as_dict().items():
            self.register_buffer(name.replace("actions_", "action_"), torch.tensor(value))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in self.checkpoint.image_scale)
        self.register_buffer("image_mean", mean, persistent=False)
        self.register_buffer("image_std", std, persistent=False)

    @property
    def adapters(self) -> Any:
        """``PeftModel`` around the model; None where it has no adapters."""
        return self._adapters[0] if self._adapters else None

    @property
    def statistics(self) -> Statistics:
        """Those in use: of the checkpoint, or of a run that was loaded."""
        parts = {name: getattr(self, name.replace("actions_", "action_")) for name in Statistics.__dataclass_fields__}
        return Statistics.of({name: value.tolist() for name, value in parts.items()})

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act: one forward pass of the VLM, and one of the expert for each denoising step."""
        prefix, state = self._prefix(tensordict), self._state(tensordict)
        draw = flow.Draw.of((len(state), self.horizon, self.width), self.steps, self._seeds).to(state)
        velocity = self._velocity(prefix, state)
        executed = self.chunk_size, self.action_dim
        found = flow.denoise(velocity, draw, self.steps, self.noise_level, sample=flow.adds_noise(), executed=executed)
        drawn = self._executed(found.drawn)
        tensordict[NOISY], tensordict[DENOISING_STEP] = found.noisy, draw.step
        tensordict[DENOISED], tensordict[LOG_PROBS] = drawn, self._dist(found.dist).log_prob(drawn)
        tensordict[CHUNK] = self.unnormalised(self._executed(found.action))
        if FEATURES in self.out_keys:
            tensordict[FEATURES] = prefix.mean
        return tensordict

    def get_dist(self, tensordict: TensorDictBase) -> Normal:
        """Of what the random step drew, ``[M, L, D]`` in normalised units."""
        prefix, state = self._prefix(tensordict), self._state(tensordict)
        x = entry(tensordict, NOISY).to(state)
        time = flow.time_of(entry(tensordict, DENOISING_STEP).to(state.device), self.steps)
        v = self._velocity(prefix, state)(x, time)
        return self._dist(flow.random_step(x, v, time, 1.0 / self.steps, self.noise_level))

    def imitation_loss(self, rows: TensorDictBase, generator: Generator | None = None) -> Tensor:
        """Flow matching on demonstrated chunks, a scalar with a gradient: the model's own loss, without padding.

        What a row does not demonstrate is trained to be 0, the mean: the numbers beyond D, as ``PI0Processor`` pads
        them, and the steps beyond L. The model attends to them when it acts, so it must leave them as they were here.
        To train the whole horizon let the environment's chunks be as long. Steps of the chunk that were never executed
        have no part in the loss.

        Args:
            rows: ``[M]`` with :attr:`in_keys`, the chunk and its padding.
            generator: Draws noise and time, on the CPU.
        """
        prefix, state = self._prefix(rows), self._state(rows)
        executed = ~entry(rows, IS_PAD).to(state.device).unsqueeze(-1)
        chunk = (entry(rows, CHUNK).to(state) - self.action_mean) / (self.action_std + EPS)
        beyond = (0, self.width - self.action_dim, 0, self.horizon - self.chunk_size)
        action = pad(torch.where(executed, chunk, 0.0), beyond)
        counts = pad(executed, (0, 0, 0, self.horizon - self.chunk_size), value=True).expand_as(action)
        noise = torch.randn(action.shape, generator=generator, device="cpu").to(state)
        error = flow.flow_matching(self._velocity(prefix, state), action, noise, self._times(len(rows), generator))
        return (error * counts).sum() / counts.sum()

    def _times(self, rows: int, generator: Generator | None) -> Tensor:
        """Times of training ``[M]``, mostly near the noise: a beta distribution, as the configuration says."""
        config = self.checkpoint.config
        beta = Beta(config.time_sampling_beta_alpha, config.time_sampling_beta_beta)
        with contextlib.nullcontext() if generator is None else _global_random(generator):
            times: Tensor = beta.sample((rows,)) * config.time_sampling_scale + config.time_sampling_offset
        return times.to(self.action_mean.device)

    def _dist(self, whole: Normal) -> Normal:
        """The part of it that is executed; unexecuted steps may hold anything, which a check would refuse."""
        return Normal(self._executed(whole.mean), self._executed(whole.stddev), validate_args=False)

    def _executed(self, x: Tensor) -> Tensor:
        return x[:, : self.chunk_size, : self.action_dim]

    def unnormalised(self, x: Tensor) -> Tensor:
        """Normalised actions ``[M, L, D]`` -> those that the environment executes, within its box."""
        return (x * (self.action_std + EPS) + self.action_mean).clamp(self.action_low, self.action_high)

    def _prefix(self, tensordict: TensorDictBase) -> Prefix:
        """What the VLM says, with a graph only where it is trained."""
        pixels = self._pixels(tensordict)
        ids, real = (part.to(pixels.device) for part in self.prompter.batch(instructions(tensordict)))
        vlm = self.model.model.vlm
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in vlm.parameters())
        with torch.set_grad_enabled(trained), self._precision(vlm):
            return read_prefix(self.model, ids, real, pixels)

    def _velocity(self, prefix: Prefix, state: Tensor) -> flow.Velocity:
        def velocity(x: Tensor, time: Tensor) -> Tensor:
            with self._precision(self.model.model.dit.layers):
                return velocity_of(self.model, prefix, state, x, time)

        return velocity

    def _precision(self, part: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Weights that are trained in float32 compute in :attr:`dtype`; frozen ones have it already."""
        weight = next(part.parameters())
        mixed = self.dtype != torch.float32 and weight.dtype == torch.float32
        return torch.autocast(weight.device.type, self.dtype) if mixed else contextlib.nullcontext()

    def _pixels(self, tensordict: TensorDictBase) -> Tensor:
        """Normalised as ``PI0ImageProcessor`` does, ``[M, cameras, 3, H, W]``."""
        size, images = self.checkpoint.image_size, []
        for key in self.image_keys:
            image = observed(tensordict, key)
            if image.shape[-3:] != (3, size, size) or image.dtype != torch.uint8:
                raise ValueError(
                    f"expected {key} as [M, 3, {size}, {size}] uint8, got {tuple(image.shape)} {image.dtype}: this "
                    f"checkpoint's images have {size} pixels a side; resize them in the environment"
                )
            images.append((image.to(self.image_mean.device).float() - self.image_mean) / self.image_std)
        return torch.stack(images, 1).to(self.model.model.vlm.vision_tower.dtype)

    def _state(self, tensordict: TensorDictBase) -> Tensor:
        """Normalised and padded with zeros, ``[M, W]`` float32."""
        state = observed(tensordict, STATE).to(self.state_mean)
        if state.shape[-1] != len(self.state_mean):
            raise ValueError(
                f"expected {STATE} with {len(self.state_mean)} numbers, as the statistics have, got {state.shape[-1]}; "
                "give policy.pi0.statistics of this environment, or the state that they are of"
            )
        normalised = (state - self.state_mean) / (self.state_std + EPS)
        return pad(normalised, (0, self.checkpoint.config.max_state_dim - state.shape[-1]))

    @contextlib.contextmanager
    def seeded(self, seeds: Sequence[int]) -> Iterator[None]:
        """Within it, row i of a batch is drawn with ``seeds[i]``, whatever the other rows are."""
        self._seeds = list(seeds)
        try:
            yield
        finally:
            self._seeds = []

    def padded_length(self, instruction: str) -> int:
        """Length of its padded prompt."""
        return self.prompter.padded_length(instruction)

    def padded(self) -> contextlib.AbstractContextManager[None]:
        """Prompts are padded always."""
        return contextlib.nullcontext()

    @torch.no_grad()
    def features(self, tensordict: TensorDictBase) -> Tensor:
        """Mean of the VLM's output over the observation's tokens, ``[M, F]`` float32.

        It depends on the observation alone, so that it can be computed again; the expert's output would depend on the
        noise as well.
        """
        return self._prefix(tensordict).mean

    def record_critic_features(self, enabled: bool) -> None:
        """Write :data:`pcm_rl.episodes.FEATURES` when it acts, as :meth:`features` gives them, or no longer."""
        self.out_keys = [key for key in self.out_keys if key != FEATURES] + ([FEATURES] if enabled else [])

    def set_checkpointing(self, enabled: bool) -> None:
        """Compute the blocks again in the backward pass, or keep them."""
        if not enabled:
            self.model.activation_checkpointing_disable()
            return
        self.model.activation_checkpointing_enable({"use_reentrant": False})
        for module in self.model.modules():
            if hasattr(module, "_can_checkpoint_with_cache"):
                module._can_checkpoint_with_cache = True  # what stands in for the cache is the same the second time

    def export(self, folder: Path, *, adapters: bool = False) -> Path:
        """Write a checkpoint in transformers' layout, or only the adapters as peft does.

        Frozen weights are written in :attr:`dtype`, in which they were used.

        Raises:
            FileExistsError: If ``folder`` holds files.
            ValueError: If ``adapters`` is true and there are none.
        """
        return save_policy_folder(self, folder, adapters=adapters)


@contextlib.contextmanager
def _global_random(generator: Generator) -> Iterator[None]:
    """Within it the global generator of the CPU, from which distributions draw, is seeded by ``generator``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
