"""The clipped GRPO objective as a TorchRL loss."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torch.distributions import Distribution, Independent
from torchrl.objectives import LossModule

from pcm_rl.algos.weights import over_the_batch
from pcm_rl.inputs import entry
from pcm_rl.objective import (
    RATIOS,
    check_tokens,
    clipped_objective,
    kl_penalty,
    mean_over_executed,
    ratio_diagnostics,
    token_mean,
)
from pcm_rl.policies.family import dist_keys, drawn_key


class ChunkGRPOLoss(LossModule):
    """Clipped GRPO loss over a batch of chunk rows.

    It is the mean over rows of :func:`~pcm_rl.objective.clipped_objective` (equation 11), with the sign turned. With
    the weights of :class:`~pcm_rl.algos.PCMSampler` it is, over the whole batch, the mean over trajectories of the mean
    over their kept tokens. The row-weighted mean of minibatch losses equals it for any split.

    Args:
        actor_network: Policy with ``get_dist(tensordict)`` over what it drew, ``[M, L, D]``, one log-prob each: action
            tokens, as a ``torchrl.modules.vla.VLAWrapperBase``, or what its ``drawn_key`` names (a flow policy; see
            :class:`~pcm_rl.policies.family.DrawsNumbers`). Run a policy with lazy layers once before.
        clip_epsilon: ``(eps_low, eps_high)`` or one number for both.
        entropy_coeff: Weight of the entropy bonus; 0 leaves ``loss_entropy`` out (the paper's is 1e-3).
        kl_coeff: Weight of the KL penalty towards a reference policy (the estimator ``exp(d) - d - 1`` with
            ``d = ref_log_prob - log_prob``); needs ``("vla_action", "ref_log_probs")`` in the batch. 0 leaves it out,
            as the paper does.
        reduction: ``"mean"`` over rows, ``"sum"``, or ``"none"`` for ``[M]``.
        ratio: What has one importance ratio: ``"token"``, ``"step"`` or ``"chunk"``
            (:func:`~pcm_rl.objective.clipped_objective`).
        functional: Store the parameters separately from the network, as TorchRL's losses do. False calls the network
            itself; gradient checkpointing needs this, since it runs blocks again in the backward pass.

    Reads (all configurable by ``set_keys``): the policy's inputs, ``tokens [M, L, D]`` (``("vla_action", "tokens")`` or
    the policy's ``drawn_key``), ``("vla_action", "log_probs") [M, L, D]``, ``"action_is_pad" [M, L]`` bool,
    ``"advantage"`` and if present ``"weight"`` (absent means 1), both ``[M]`` or ``[M, 1]``. Padded steps may hold
    anything.

    Writes ``loss_objective`` (and ``loss_entropy``, ``loss_kl``), and without gradient ``clip_fraction``, ``kl_approx``
    (mean of ``rho - 1 - log rho``, non-negative), ``mean_ratio``, ``max_ratio`` and ``entropy``, over executed tokens
    (of the first four: over what has one ratio).

    Raises:
        ValueError: On construction for a clip threshold outside (0, 1) below or not positive above, a negative
            coefficient, an unknown reduction or ratio; in ``forward`` for shapes and types that do not fit, such as an
            advantage for each token, and for an entropy bonus on a policy whose entropy cannot change.
        KeyError: In ``forward`` if an entry is missing.

    Warns:
        UserWarning: In ``forward`` without any rows; the loss is then 0.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from pcm_rl.algos import ChunkGRPOLoss
        >>> from pcm_rl.policies import StateTokenPolicy
        >>> policy = StateTokenPolicy(state_dim=3, action_dim=7, chunk_length=8)
        >>> batch = TensorDict({
        ...     "observation": {"state": torch.randn(5, 3)},
        ...     "action_is_pad": torch.zeros(5, 8, dtype=torch.bool),
        ...     "advantage": torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0]),
        ... }, batch_size=[5])
        >>> _ = policy(batch)  # writes tokens, chunk and log-probs
        >>> out = ChunkGRPOLoss(policy)(batch)
        >>> out["loss_objective"].backward()
        >>> float(out["mean_ratio"].detach())  # the trained policy is the one that acted
        1.0
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` can rename."""

        tokens: NestedKey = ("vla_action", "tokens")
        log_probs: NestedKey = ("vla_action", "log_probs")
        ref_log_probs: NestedKey = ("vla_action", "ref_log_probs")
        is_pad: NestedKey = "action_is_pad"
        advantage: NestedKey = "advantage"
        weight: NestedKey = "weight"

    default_keys = _AcceptedKeys
    # TorchRL sets this mode while a loss runs, for all threads; a loss draws nothing, and rollouts beside it must
    deterministic_sampling_mode = None
    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        *,
        clip_epsilon: float | tuple[float, float] = (0.2, 0.4),
        entropy_coeff: float = 0.0,
        kl_coeff: float = 0.0,
        reduction: str = "mean",
        ratio: str = "token",
        functional: bool = True,
    ) -> None:
        self._in_keys: list[NestedKey] | None = None
        super().__init__()
        low, high = clip_epsilon if isinstance(clip_epsilon, (tuple, list)) else (clip_epsilon, clip_epsilon)
        if not 0.0 < low < 1.0 or not high > 0.0:
            raise ValueError(f"clip_epsilon must satisfy 0 < eps_low < 1 and eps_high > 0, got ({low}, {high})")
        if entropy_coeff < 0 or kl_coeff < 0:
            raise ValueError(f"coefficients must not be negative, got entropy {entropy_coeff}, kl {kl_coeff}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"unknown reduction {reduction!r}; choose one of mean, sum, none")
        if ratio not in RATIOS:
            raise ValueError(f"unknown ratio {ratio!r}; choose one of {', '.join(RATIOS)}")
        if not hasattr(actor_network, "get_dist"):
            raise ValueError(f"{type(actor_network).__name__} has no get_dist(tensordict); a token policy is needed")
        self._functional = functional
        if functional:
            self.convert_to_functional(actor_network, "actor_network", create_target_params=False)
        else:
            self.actor_network = actor_network
        self.clip_low, self.clip_high = float(low), float(high)
        self.entropy_coeff, self.kl_coeff = float(entropy_coeff), float(kl_coeff)
        self.reduction, self.ratio = reduction, ratio
        self.set_keys(tokens=drawn_key(actor_network))

    @property
    def functional(self) -> bool:
        """Whether the parameters are stored separately from the network."""
        return self._functional

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        """There is no critic."""

    @property
    def in_keys(self) -> list[NestedKey]:
        """What ``forward`` reads; ``weight`` is optional and not listed."""
        if self._in_keys is None:
            keys = self.tensor_keys
            listed = [*dist_keys(self.actor_network), keys.tokens, keys.log_probs, keys.is_pad, keys.advantage]
            self._in_keys = listed + ([keys.ref_log_probs] if self.kl_coeff else [])
        return self._in_keys

    @in_keys.setter
    def in_keys(self, keys: list[NestedKey]) -> None:
        self._in_keys = keys

    def set_keys(self, **kwargs: Any) -> None:
        """Rename the entries that the loss reads."""
        self._in_keys = None
        super().set_keys(**kwargs)

    @property
    def out_keys(self) -> list[str]:
        """What ``forward`` writes."""
        losses = ["loss_objective"]
        losses += ["loss_entropy"] if self.entropy_coeff else []
        losses += ["loss_kl"] if self.kl_coeff else []
        return [*losses, "clip_fraction", "kl_approx", "mean_ratio", "max_ratio", "entropy"]

    @property
    def call_keys(self) -> list[NestedKey]:
        """What a call without a TensorDict takes, by place or by keyword: ``in_keys``, and the weight."""
        return [*self.in_keys, self.tensor_keys.weight]

    @dispatch(source="call_keys")
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Loss and diagnostics of ``tensordict [M]``."""
        keys = self.tensor_keys
        tokens, old, pad, advantage = (
            entry(tensordict, key) for key in (keys.tokens, keys.log_probs, keys.is_pad, keys.advantage)
        )
        check_tokens(tokens, old, pad, str(keys.is_pad))
        if not len(tokens):
            warnings.warn("the loss got no rows: it is 0 and has no gradient; skip this update", stacklevel=2)
        executed = ~pad
        weight = over_the_batch(tensordict, keys.weight).get(keys.weight, None)
        dist = self._distribution(tensordict)
        # what stands in steps that were never executed, such as -100 or NaN, is no token: it is never looked up
        new = dist.log_prob(tokens.masked_fill(~executed.unsqueeze(-1), 0))
        clip = (self.clip_low, self.clip_high)
        gain = clipped_objective(new, old, advantage, executed, weight, clip_epsilon=clip, ratio=self.ratio)
        out = {"loss_objective": -self._reduce(gain)}
        with contextlib.nullcontext() if self.entropy_coeff else torch.no_grad():  # without a bonus no graph is kept
            entropy = dist.entropy()
        if self.entropy_coeff:
            if new.requires_grad and not entropy.requires_grad:
                raise ValueError(
                    f"entropy_coeff={self.entropy_coeff:g} means nothing for {type(self.actor_network).__name__}: the "
                    "noise that it draws from is fixed, and so is its entropy; give 0"
                )
            out["loss_entropy"] = -self.entropy_coeff * self._reduce(token_mean(entropy, executed, weight))
        if self.kl_coeff:
            penalty = kl_penalty(new, entry(tensordict, keys.ref_log_probs), executed, weight)
            out["loss_kl"] = self.kl_coeff * self._reduce(penalty)
        out |= ratio_diagnostics(new, old, executed, clip_epsilon=clip, ratio=self.ratio)
        return TensorDict({**out, "entropy": mean_over_executed(entropy.detach(), executed, new.dtype)})

    def _distribution(self, tensordict: TensorDictBase) -> Distribution:
        """Distribution of every token, also where the policy sums log-probs over a chunk."""
        parameters = (
            self.actor_network_params.to_module(self.actor_network) if self.functional else contextlib.nullcontext()
        )
        with parameters:
            dist = self.actor_network.get_dist(tensordict)
        return dist.base_dist if isinstance(dist, Independent) else dist

    def _reduce(self, row: Tensor) -> Tensor:
        """``[M]`` as the reduction says."""
        if self.reduction == "none":
            return row
        return row.mean() if self.reduction == "mean" and len(row) else row.sum()  # of no rows: 0
