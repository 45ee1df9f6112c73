"""What a policy family is: a function that makes a token policy for an environment.

    def make_policy(observation_space, action_space, *, device, **settings) -> TokenPolicy

``policy.family`` names it: ``state``, ``openvla``, or ``module:function``. Its settings come from the family's
section of the configuration, those of a family of one's own from ``policy.options``. What is trained are the parameters
that require a gradient. A run saves those and the buffers, as safetensors; a family has to do nothing for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torch.distributions import Distribution


class TokenPolicy(Protocol):
    """What every policy must offer; TorchRL's ``VLAWrapperBase`` brings it with a network put in.

    Attributes:
        in_keys: Entries of the observation that it reads.
        out_keys: Entries that it writes when it acts.
        chunk_size: L.
        action_dim: D.
        action_tokenizer: ``encode`` makes tokens ``[M, L, D]`` of actions, for the supervised start.
    """

    in_keys: list[NestedKey]
    out_keys: list[NestedKey]
    chunk_size: int
    action_dim: int
    action_tokenizer: Any

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decide: write tokens, chunk and log-probs ``[M, L, D]`` of the tokens, recorded at sampling."""

    def get_dist(self, tensordict: TensorDictBase) -> Distribution:
        """Distribution over tokens ``[M, L, D]``, one log-prob a token: what the loss goes through."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its parameters; those that require a gradient are trained."""


def lacks(policy: object) -> list[str]:
    """What a policy lacks of :class:`TokenPolicy`.

    By ``hasattr``: from Python 3.12 on ``isinstance`` looks past ``__getattr__``, where a module keeps its parts.
    """
    needed = (*TokenPolicy.__annotations__, "__call__", "get_dist", "parameters")
    return [name for name in needed if not hasattr(policy, name)]


# What a policy may offer beside it. The trainer asks for the method, never for the family.


@runtime_checkable
class SamplesRows(Protocol):
    """A large policy that samples each row of a batch under a seed of its own.

    Waiting workers are then decided in one forward; another policy is called with one row at a time.
    """

    def seeded(self, seeds: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """Within it, row i of a batch is sampled under ``seeds[i]``, whatever other rows are there."""


@runtime_checkable
class CountsTokens(Protocol):
    """A policy whose rows differ in cost: ``update.micro_tokens`` packs them by it."""

    def row_tokens(self, tensordict: TensorDictBase) -> Tensor:
        """What each row costs, ``[M]`` int64."""


@runtime_checkable
class Recomputes(Protocol):
    """A policy that can compute its blocks again in the backward pass: ``policy.checkpointing``."""

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute from here on, or keep."""


@runtime_checkable
class Exports(Protocol):
    """A policy that can be written as a checkpoint that others load: ``pcm-rl export``.

    Its family is called with ``observation_space=None``, since a run is exported without its environment.
    """

    def export(self, folder: Path, *, adapters: bool = False) -> Path:
        """Write it into a new folder: all of it, or its adapters only."""


@runtime_checkable
class GivesFeatures(Protocol):
    """A policy that shows what it makes of an observation: ``advantage.features=policy``."""

    def features(self, tensordict: TensorDictBase) -> Tensor:
        """What a critic sees of each row, ``[M, F]`` float, without a gradient."""


def parameter_device(policy: TokenPolicy) -> torch.device:
    """Where a policy's parameters are."""
    return next(policy.parameters()).device
