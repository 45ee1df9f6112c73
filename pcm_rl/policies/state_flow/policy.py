"""A small flow policy on state observations, for CPUs: the interface of pi0 at a thousandth of its size."""

from __future__ import annotations

from functools import partial

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Generator, Tensor
from torch.distributions import Normal

from pcm_rl.episodes import CHUNK, DENOISED, DENOISING_STEP, FEATURES, IS_PAD, LOG_PROBS, NOISY, STATE
from pcm_rl.policies.flow import Draw, adds_noise, check_chain, denoise, flow_matching, random_step, time_of
from pcm_rl.policies.last_layer import critic_input
from pcm_rl.policies.state_flow.network import VelocityNetwork


class StateFlowPolicy(TensorDictModuleBase):
    """State ``[M, S]`` -> a chunk of actions ``[M, L, D]``, denoised from noise (:mod:`pcm_rl.policies.flow`).

    To the network the environment's action box is [-1, 1]. A chunk that leaves the box is brought to its bounds when it
    is written; log-probs are of what was drawn before. Writes ``("vla_action", "chunk")`` in the environment's units,
    and what its random denoising step began from, drew, and which it was: ``("vla_action", "noisy")``, ``"denoised"``
    and ``"denoising_step"``, with ``"log_probs"`` of each number drawn. With tensordict's interaction type
    ``DETERMINISTIC`` no step adds noise; the noise that it begins from is drawn all the same.

    Args:
        state_dim: S.
        action_dim: D.
        chunk_length: L.
        width: Hidden width of :class:`VelocityNetwork`.
        depth: Its hidden layers.
        steps: Denoising steps.
        noise_level: a of the random step.
        low: Lower end of the action box, a number or ``[D]`` or ``[L, D]``; see
            :func:`~pcm_rl.policies.bins.action_range`.
        high: Upper end.

    Raises:
        ValueError: Without a step, for a noise level that is not positive, or a box without width.
    """

    drawn_key: NestedKey = DENOISED
    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        state_dim: int,
        action_dim: int = 7,
        chunk_length: int = 8,
        *,
        width: int = 256,
        depth: int = 2,
        steps: int = 4,
        noise_level: float = 0.5,
        low: float | Tensor = -1.0,
        high: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        check_chain(steps, noise_level)
        for name, bound in (("action_low", low), ("action_high", high)):
            self.register_buffer(name, torch.as_tensor(bound, dtype=torch.float32).clone())
        if not bool((self.action_low < self.action_high).all()):
            raise ValueError(f"expected an action box with low below high, got {low} and {high}")
        self.network = VelocityNetwork(state_dim, chunk_length, action_dim, width, depth)
        self.chunk_size, self.action_dim = chunk_length, action_dim
        self.steps, self.noise_level = steps, noise_level
        self.in_keys: list[NestedKey] = [STATE]
        self.dist_keys: list[NestedKey] = [STATE, NOISY, DENOISING_STEP]
        self.out_keys: list[NestedKey] = [CHUNK, NOISY, DENOISED, DENOISING_STEP, LOG_PROBS]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decide for ``[M]`` rows: one encoding of their states, and one velocity a denoising step."""
        encoded = self._encoded(tensordict)
        draw = Draw.of((len(encoded), self.chunk_size, self.action_dim), self.steps).to(encoded)
        velocity = partial(self.network.velocity, encoded)
        made = denoise(velocity, draw, self.steps, self.noise_level, sample=adds_noise())
        tensordict.set(CHUNK, self._in_the_box(made.action)).set(NOISY, made.noisy).set(DENOISED, made.drawn)
        tensordict.set(DENOISING_STEP, draw.step).set(LOG_PROBS, made.dist.log_prob(made.drawn))
        return tensordict.set(FEATURES, critic_input(encoded)) if FEATURES in self.out_keys else tensordict

    def get_dist(self, tensordict: TensorDictBase) -> Normal:
        """Distribution ``[M, L, D]`` of what the random step of ``[M]`` rows drew."""
        x, time = tensordict.get(NOISY), time_of(tensordict.get(DENOISING_STEP), self.steps)
        velocity = self.network.velocity(self._encoded(tensordict), x, time)
        return random_step(x, velocity, time, 1.0 / self.steps, self.noise_level)

    def imitation_loss(self, rows: TensorDictBase, generator: Generator | None = None) -> Tensor:
        """Mean squared error of the velocity over executed steps, of actions that are [-1, 1] in the box; a scalar.

        The time is drawn as for pi0: ``0.001 + 0.999 b`` with ``b`` from Beta(1.5, 1), so more often near the noise.
        The noisy chunk begins from 0, the middle of the box, at steps that were never executed.

        Args:
            rows: ``[M]`` with the state, the demonstrated chunk in the environment's units, at least one step of it
                executed, and its padding.
            generator: Draws noise and times, on the CPU.
        """
        executed = ~rows.get(IS_PAD).unsqueeze(-1)
        encoded, chunk = self._encoded(rows), rows.get(CHUNK)
        action = torch.where(executed, self._normalised(chunk).to(encoded), 0.0)
        noise = torch.randn(chunk.shape, generator=generator, device="cpu").to(action)
        time = 0.001 + 0.999 * torch.rand(len(chunk), generator=generator, device="cpu") ** (2.0 / 3.0)
        error = flow_matching(partial(self.network.velocity, encoded), action, noise, time.to(action))
        return error[executed.expand_as(error)].mean()

    @torch.no_grad()
    def features(self, tensordict: TensorDictBase) -> Tensor:
        """The encoded state, all that the velocity knows of the observation, ``[M, width]`` float32."""
        return critic_input(self._encoded(tensordict))

    def record_critic_features(self, enabled: bool) -> None:
        """Write :data:`~pcm_rl.episodes.FEATURES` when it acts, as :meth:`features` gives them, or no longer."""
        others = [key for key in self.out_keys if key != FEATURES]
        self.out_keys = [*others, FEATURES] if enabled else others

    def _encoded(self, tensordict: TensorDictBase) -> Tensor:
        state = tensordict.get(STATE)
        if state.ndim != 2:
            raise ValueError(f"expected states [M, S], one row a decision, got {tuple(state.shape)}")
        return self.network.encode(state)

    def _normalised(self, chunk: Tensor) -> Tensor:
        """The environment's units -> [-1, 1]; what lies outside of the box was executed at its bounds."""
        return (2.0 * (chunk - self.action_low) / (self.action_high - self.action_low) - 1.0).clamp(-1.0, 1.0)

    def _in_the_box(self, action: Tensor) -> Tensor:
        """[-1, 1] -> the environment's units, within its box."""
        chunk = self.action_low + (action + 1.0) / 2.0 * (self.action_high - self.action_low)
        return torch.minimum(torch.maximum(chunk, self.action_low), self.action_high)
