"""A small token policy on state observations, for CPUs: the interface of the 7B model at a millionth of its cost."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType
from torch import Tensor, nn
from torchrl.data.vla import UniformActionTokenizer
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.episodes import FEATURES
from pcm_rl.policies.last_layer import calls_of, critic_input


class StateTokenPolicy(VLAWrapperBase):
    """State ``[M, S]`` -> ``L * D`` categorical action tokens, all in one forward.

    Each action dimension is cut into ``num_bins`` uniform bins from ``low`` to ``high``, the environment's action box.
    Writes ``("vla_action", "tokens")``, ``("vla_action", "chunk")`` (bin centres, in the environment's units) and, at
    sampling, ``("vla_action", "log_probs")`` of each token; on request (:meth:`record_critic_features`) also its last
    hidden layer.

    Args:
        state_dim: S.
        action_dim: D.
        chunk_length: L.
        network: ``"mlp"``, or ``"transformer"`` (one query per step, with attention to the state and to each other).
        width: Hidden width.
        depth: Number of hidden layers or transformer blocks.
        num_bins: Bins of each dimension.
        temperature: Divides the logits, in rollout and loss alike.
        low: Lower end of the bins, a number or ``[D]`` or ``[L, D]``; see :func:`~pcm_rl.policies.bins.action_range`.
        high: Upper end of the bins.

    Raises:
        ValueError: For an unknown network, a temperature that is not positive, or bins without width.
    """

    _records = False  # whether acting writes FEATURES

    def __init__(
        self,
        state_dim: int,
        action_dim: int = 7,
        chunk_length: int = 8,
        *,
        network: str = "mlp",
        width: int = 256,
        depth: int = 2,
        num_bins: int = 16,
        temperature: float = 1.0,
        low: float | Tensor = -1.0,
        high: float | Tensor = 1.0,
    ) -> None:
        if network not in NETWORKS:
            raise ValueError(f"unknown network {network!r}; choose one of {', '.join(NETWORKS)}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        super().__init__(
            NETWORKS[network](state_dim, action_dim * num_bins, chunk_length, width, depth),
            action_dim=action_dim,
            chunk_size=chunk_length,
            action_head="tokens",
            vocab_size=num_bins,
            action_tokenizer=UniformActionTokenizer(num_bins, low=low, high=high),
            output_mode="both",
            log_probs_mode="token",
            return_vla_action_container=False,
            default_interaction_type=InteractionType.RANDOM,
        )
        self.temperature = temperature

    def _update_keys(self) -> None:
        super()._update_keys()
        self.in_keys = [self.tensor_keys.state]  # neither image nor instruction
        if self._records:
            self.out_keys.append(FEATURES)

    def record_critic_features(self, enabled: bool) -> None:
        """Write :data:`~pcm_rl.episodes.FEATURES` when it acts, as :meth:`features` gives them, or no longer."""
        self._records = enabled
        self._update_keys()

    def forward(self, tensordict: TensorDictBase, **options: Any) -> TensorDictBase:
        """Act: one forward pass of the network, and its last hidden layer where that is recorded."""
        if not self._records:
            return super().forward(tensordict, **options)
        with calls_of(self.model.head) as calls:
            out = super().forward(tensordict, **options)
        ((last, _),) = calls
        return out.set(FEATURES, critic_input(self.model.pooled(last)))

    @torch.no_grad()
    def features(self, tensordict: TensorDictBase) -> Tensor:
        """The network's last hidden layer (of a transformer its mean over the steps), ``[M, width]`` float32."""
        return critic_input(self.model.pooled(self.model.last(tensordict.get(self.tensor_keys.state))))

    def _predict(self, tensordict: TensorDictBase) -> Tensor:
        return self.model(tensordict.get(self.tensor_keys.state)) / self.temperature


class _MLP(nn.Sequential):
    def __init__(self, inputs: int, per_step: int, steps: int, width: int, depth: int) -> None:
        sizes = [inputs] + [width] * depth
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.SiLU()]
        head = nn.Linear(sizes[-1], steps * per_step)
        nn.init.zeros_(head.bias)
        super().__init__(*layers, head)

    @property
    def head(self) -> nn.Module:
        return self[-1]

    def last(self, state: Tensor) -> Tensor:
        """``[..., S]`` -> ``[..., width]``, what the head reads."""
        for layer in list(self)[:-1]:
            state = layer(state)
        return state

    def pooled(self, last: Tensor) -> Tensor:
        """One vector a row, ``[..., width]``."""
        return last


class _Transformer(nn.Module):
    """One token for the state, one query for each step of the chunk; attention in both directions."""

    def __init__(self, inputs: int, per_step: int, steps: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.query = nn.Parameter(torch.randn(steps, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, nhead=max(width // 32, 1), dim_feedforward=2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, per_step)

    def forward(self, state: Tensor) -> Tensor:
        return self.head(self.last(state)).flatten(-2)

    def last(self, state: Tensor) -> Tensor:
        """``[..., S]`` -> ``[..., L, width]``, what the head reads."""
        first = self.embed(state.reshape(-1, 1, state.shape[-1]))
        tokens = torch.cat([first, first + self.query], 1)
        normed: Tensor = self.norm(self.blocks(tokens)[:, 1:])
        return normed.reshape(*state.shape[:-1], *self.query.shape)

    def pooled(self, last: Tensor) -> Tensor:
        """One vector a row: the mean over the steps, ``[..., width]``."""
        return last.mean(-2)


NETWORKS: dict[str, Any] = {"mlp": _MLP, "transformer": _Transformer}
