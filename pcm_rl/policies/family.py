"""A policy family: a function that makes a policy for an environment.

    def make_policy(observation_space, action_space, *, device, **settings) -> TokenPolicy | DrawsNumbers

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
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from pcm_rl.episodes import TOKENS


class Policy(Protocol):
    """What every policy must offer.

    Buffers whose names begin with ``action_`` say what its outputs mean in the environment's units: the weights of a
    policy with others are refused.

    Attributes:
        in_keys: Entries of the observation that it reads.
        out_keys: Entries that it writes when it acts.
        chunk_size: L.
        action_dim: D.
    """

    in_keys: list[NestedKey]
    out_keys: list[NestedKey]
    chunk_size: int
    action_dim: int

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decide: write what it draws, the chunk, and the log-probs ``[M, L, D]`` of the draw."""

    def get_dist(self, tensordict: TensorDictBase) -> Distribution:
        """Distribution of what it drew ``[M, L, D]``, one log-prob each; the loss uses it."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its parameters; those that require a gradient are trained."""


class TokenPolicy(Policy, Protocol):
    """A policy that draws tokens; TorchRL's ``VLAWrapperBase`` provides it for a network.

    Attributes:
        action_tokenizer: ``encode`` makes tokens ``[M, L, D]`` of actions, for the supervised start.
    """

    action_tokenizer: Any


@runtime_checkable
class DrawsNumbers(Protocol):
    """A policy whose actions are numbers, such as one that is trained by flow matching.

    Attributes:
        drawn_key: The entry that it draws, ``[M, L, D]`` float: log-probs are of it. Acting writes it.
        dist_keys: All that :meth:`Policy.get_dist` reads: ``in_keys``, and of what acting writes that which the
            distribution of the draw depends on.
    """

    drawn_key: NestedKey
    dist_keys: list[NestedKey]

    def imitation_loss(self, rows: TensorDictBase, generator: Generator | None = None) -> Tensor:
        """What the supervised start makes small, a scalar with a gradient.

        Args:
            rows: ``[M]`` with ``in_keys``, the demonstrated chunk ``[M, L, D]`` in the environment's units and its
                padding ``[M, L]`` bool. What stands in steps that were never executed, also NaN, must not matter.
            generator: Draws what it needs at random, on the CPU.
        """


def lacks(policy: object) -> list[str]:
    """What a policy lacks of :class:`TokenPolicy`, or where it has no tokens of :class:`DrawsNumbers`.

    By ``hasattr``: from Python 3.12 on ``isinstance`` looks past ``__getattr__``, where a module keeps its parts.
    """
    draws = ("drawn_key", "dist_keys", "imitation_loss")
    kind = draws if hasattr(policy, "drawn_key") else ("action_tokenizer",)
    needed = (*Policy.__annotations__, *kind, "__call__", "get_dist", "parameters")
    return [name for name in needed if not hasattr(policy, name)]


def bins_of(policy: object) -> int | None:
    """A, the tokens that a policy chooses from, as its tokenizer says; None where it does not."""
    bins = getattr(getattr(policy, "action_tokenizer", None), "vocab_size", None)
    return bins if isinstance(bins, int) and bins > 1 else None


def drawn_key(policy: object) -> NestedKey:
    """The entry that the policy's log-probs are of."""
    key: NestedKey = getattr(policy, "drawn_key", TOKENS)
    return key


def dist_keys(policy: Any) -> list[NestedKey]:
    """The entries that ``policy.get_dist`` reads."""
    keys: list[NestedKey] = getattr(policy, "dist_keys", policy.in_keys)
    return keys


def log_probs_of(policy: Policy, rows: TensorDictBase) -> Tensor:
    """Log-probs ``[M, L, D]`` of what was drawn in ``rows [M]``, under the policy as it is now."""
    drawn = rows.get(drawn_key(policy))
    log_probs: Tensor = policy.get_dist(rows.select(*dist_keys(policy), strict=False)).log_prob(drawn)
    return log_probs


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
        :meth:`features` gives for the same rows. Actions, log-probs and :meth:`Policy.get_dist` stay as they are.
        """
