"""Rows of unequal length -> micro-batches within a budget of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from pcm_rl.inputs import whole_number


def pack_rows(tokens: Tensor, budget: int) -> list[Tensor]:
    """Group rows so that no group, padded to its longest row, has more than ``budget`` tokens.

    Rows of similar length are grouped, so there is little padding; each group is filled as far as possible. Rows of
    several trajectories can share a group: each row has its weight, and the gradient is the sum over groups.

    Args:
        tokens: Length of each row, ``[R]`` int64, positive.
        budget: Tokens in a group, at least the longest row's.

    Returns:
        Indices of rows, longest first, each row in exactly one group.

    Raises:
        ValueError: If a row alone is longer than ``budget``, or has no token, or ``budget`` is no whole number.
    """
    budget = whole_number("micro_tokens", budget)
    if len(tokens) and int(tokens.min()) < 1:
        raise ValueError(f"expected rows of at least 1 token, got {int(tokens.min())}; look at the policy's row_tokens")
    longest = int(tokens.max()) if len(tokens) else 0
    if longest > budget:
        raise ValueError(f"expected micro_tokens of at least the longest row's {longest} tokens, got {budget}")
    order = tokens.argsort(descending=True, stable=True)
    groups: list[Tensor] = []
    first = 0
    while first < len(order):
        rows = budget // int(tokens[order[first]])
        groups.append(order[first : first + rows])
        first += rows
    return groups


def micro_batches(rows: Tensor, *, micro_rows: int | None, tokens: Tensor | None, budget: int | None) -> list[Tensor]:
    """Split ``rows [R]`` of a minibatch: by tokens where a budget is given, else by number, else not at all.

    Args:
        rows: Indices into the batch, ``[R]``.
        micro_rows: Rows in a micro-batch.
        tokens: Length of each row of the *batch*, ``[M]``; needed with ``budget``.
        budget: Tokens in a micro-batch.
    """
    if budget is not None:
        assert tokens is not None
        return [rows[group] for group in pack_rows(tokens[rows], budget)]
    most = len(rows) if micro_rows is None else whole_number("micro_rows", micro_rows)
    return list(rows.split(most)) if len(rows) else []


def row_tokens(policy: object, batch: object) -> Tensor:
    """Length of each row as the policy counts it, ``[M]``.

    Raises:
        ValueError: If the policy does not count tokens.
    """
    count = getattr(policy, "row_tokens", None)
    if count is None:
        raise ValueError(
            f"{type(policy).__name__} has no row_tokens(batch), so update.micro_tokens says nothing; use "
            "update.micro_rows"
        )
    lengths: Tensor = count(batch)
    return torch.as_tensor(lengths)
