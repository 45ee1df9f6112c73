"""A policy family: a function that makes a token policy for an environment.

    def make_policy(observation_space, action_space, *, device, **settings) -> TokenPolicy

``policy.family`` names it: ``state``, ``openvla``, or ``module:function``. The settings of a built-in family come from
its section of the configuration, those of a user's family from ``policy.options``. All parameters that require a
gradient are trained. A run saves them and the buffers as safetensors, without code in the family.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torch.distributions import Distribution


class TokenPolicy(Protocol):
    """What every policy must offer; TorchRL's ``VLAWrapperBase`` provides it for a network.

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
        """Distribution over tokens ``[M, L, D]``, one log-prob per token; the loss uses it."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its parameters; those that require a gradient are trained."""


def lacks(policy: object) -> list[str]:
    """What a policy lacks of :class:`TokenPolicy`.

    By ``hasattr``: from Python 3.12 on ``isinstance`` looks past ``__getattr__``, where a module keeps its parts.
    """
    needed = (*TokenPolicy.__annotations__, "__call__", "get_dist", "parameters")
    return [name for name in needed if not hasattr(policy, name)]


def bins_of(policy: TokenPolicy) -> int | None:
    """A, the tokens that a policy chooses from, as its tokenizer says; None where it does not."""
    bins = getattr(policy.action_tokenizer, "vocab_size", None)
    return bins if isinstance(bins, int) and bins > 1 else None


# Optional parts of a policy. The trainer checks for the method, never for the family.


@runtime_checkable
class SamplesRows(Protocol):
    """A large policy that samples each row of a batch with its own seed.

    It is called once for all waiting workers; other policies are called with one row at a time.
    """

    def seeded(self, seeds: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """Within it, row i of a batch is sampled with ``seeds[i]``, whatever the other rows are."""


@runtime_checkable
class PadsPrompts(SamplesRows, Protocol):
    """A policy whose forward pass has another shape for a longer instruction.

    With ``rollouts.decisions`` all forward passes have few shapes: rows of different padded lengths share none.
    """

    def padded_length(self, instruction: str) -> int:
        """Length of the padded prompt, by this instruction alone."""

    def padded(self) -> contextlib.AbstractContextManager[None]:
        """Within it, prompts are padded to :meth:`padded_length`, and computed as padded ones."""


@runtime_checkable
class Acts(Protocol):
    """A policy that prepares its weights for many decisions."""

    def acting(self) -> contextlib.AbstractContextManager[None]:
        """Entered for a whole collection of rollouts; the policy is not trained within it."""


@runtime_checkable
class CountsTokens(Protocol):
    """A policy whose rows differ in cost: ``update.micro_tokens`` packs rows by their cost."""

    def row_tokens(self, tensordict: TensorDictBase) -> Tensor:
        """The cost of each row, ``[M]`` int64."""


@runtime_checkable
class Recomputes(Protocol):
    """A policy that can compute its blocks again in the backward pass: ``policy.checkpointing``."""

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute from now on, or keep."""


@runtime_checkable
class Exports(Protocol):
    """A policy that can be written as a checkpoint for other programs: ``pcm-rl export``.

    Its family is called with ``observation_space=None``, since a run is exported without its environment.
    """

    def export(self, folder: Path, *, adapters: bool = False) -> Path:
        """Write the policy into a new folder: all of it, or its adapters only."""


@runtime_checkable
class GivesFeatures(Protocol):
    """A policy that gives its features of an observation: ``advantage.features=policy``."""

    def features(self, tensordict: TensorDictBase) -> Tensor:
        """A critic's input for each row, ``[M, F]`` float, without a gradient."""


@runtime_checkable
class RecordsFeatures(GivesFeatures, Protocol):
    """A policy that records its features when it acts: a critic costs no forward pass of its own."""

    def record_critic_features(self, enabled: bool) -> None:
        """Write :data:`~pcm_rl.episodes.FEATURES` from now on, or no longer.

        While enabled, ``out_keys`` names that entry, and acting writes it: ``[M, F]`` float32 without a gradient, what
        :meth:`features` gives for the same rows. Actions, log-probs and :meth:`TokenPolicy.get_dist` stay as they are.
        """
