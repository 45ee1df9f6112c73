"""What is accepted: one rule for all functions of the method, for the transforms, the loss and the update.

A count is a whole number of any integer type. A column of a batch is ``[M]`` or, as TorchRL writes it, ``[M, 1]``. Ids
and phases have any integer type. A mask is bool: ``~`` of another type is not its negation. Everything else is refused
with a ``ValueError`` that says what came and what to do. The checks look at types and shapes, not at values, wherever
these suffice.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor


def whole_number(name: str, value: Any, *, least: int = 1, unit: str = "") -> int:
    """``value`` as an ``int``: any integer type (Python, NumPy, a tensor of one integer), but no bool and no float.

    Args:
        name: For the message.
        value: What was given.
        least: The smallest that is accepted.
        unit: For the message, such as ``"chunk per trajectory"``.

    Raises:
        ValueError: If it is not a whole number of at least ``least``.
    """
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
        number = operator.index(value)
    except (TypeError, RuntimeError):
        raise ValueError(f"{name} must be a whole number, got {value!r} ({type(value).__name__})") from None
    if number < least:
        raise ValueError(f"{name} must be at least {f'{least} {unit}'.strip()}, got {number}")
    return number


def positive_number(name: str, value: Any, *, finite: bool = True) -> float:
    """``value`` as a ``float`` above 0.

    Raises:
        ValueError: If it is not above 0, is nan, is a bool or no number, or, with ``finite``, is infinite.
    """
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number > 0.0 or (finite and math.isinf(number)):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return number


def column(name: str, value: Tensor, rows: int | None = None) -> Tensor:
    """``value`` as ``[M]``; it may be ``[M, 1]``.

    Raises:
        ValueError: If it has another shape, or not ``rows`` entries.
    """
    if value.ndim == 2 and value.shape[1] == 1:
        value = value.squeeze(-1)
    if value.ndim != 1 or rows not in (None, len(value)):
        expected = "M" if rows is None else rows
        raise ValueError(
            f"{name} must have shape [{expected}] or [{expected}, 1], one entry a row, got {tuple(value.shape)}"
        )
    return value


def ids(name: str, value: Tensor, rows: int | None = None) -> Tensor:
    """Ids, phases or numbers of chunks as ``[M]`` int64; any integer type is accepted.

    Raises:
        ValueError: If the shape does not fit, or the type is no integer.
    """
    return integers(name, column(name, value, rows))


def integers(name: str, value: Tensor) -> Tensor:
    """``value`` of any shape and integer type as int64.

    Raises:
        ValueError: If it is bool, floating or complex.
    """
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{name} must be an integer tensor, got {value.dtype}; convert it with .long()")
    return value.long()


def binary(name: str, value: Tensor, rows: int | None = None) -> Tensor:
    """Outcomes as ``[M]`` bool: a bool tensor, or numbers that are exactly 0 or 1.

    Raises:
        ValueError: If the shape does not fit or another value is in it.
    """
    value = column(name, value, rows)
    if value.dtype == torch.bool:
        return value
    if not bool(((value == 0) | (value == 1)).all()):
        raise ValueError(f"{name} must be binary (0 or 1): successes are compared with failures; threshold returns")
    return value.bool()


def number_per_row(name: str, value: Tensor, rows: int) -> Tensor:
    """An advantage or a weight as ``[M]``: one real number a row.

    Raises:
        ValueError: If the shape does not fit, as for one number a token, or it is complex.
    """
    value = column(name, value, rows)
    if value.is_complex():
        raise ValueError(f"{name} must be real, got {value.dtype}")
    return value


def mask(name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    """``value``, which must be a bool tensor of that ``shape``.

    Raises:
        ValueError: If it is not.
    """
    if value.dtype != torch.bool or value.shape != torch.Size(shape):
        hint = "" if value.dtype == torch.bool else "; convert it with .bool(): ~ of another type is not its negation"
        raise ValueError(f"{name} must be bool {tuple(shape)}, got {value.dtype} {tuple(value.shape)}{hint}")
    return value


def weights(value: Tensor) -> Tensor:
    """Weights of a draw, ``[..., N]``, without their gradient.

    Raises:
        ValueError: If there is no dimension, or a weight is negative, NaN or infinite.
    """
    if value.ndim < 1:
        raise ValueError(f"weight must have shape [..., N], got {tuple(value.shape)}")
    value = value.detach()
    if value.numel():
        least, most = (float(end) for end in value.aminmax())  # NaN where there is one
        if not (least >= 0.0 and most < math.inf):
            raise ValueError(f"weights must be finite and not negative, got values from {least} to {most}")
    return value


def entry(batch: TensorDictBase, key: NestedKey) -> Tensor:
    """The entry of a batch at ``key``.

    Raises:
        KeyError: If there is none; the message names the key.
    """
    value: Tensor | None = batch.get(key, None)
    if value is None:
        raise KeyError(f"the batch lacks {key!r}; it has {sorted(map(str, batch.keys(True, True)))}")
    return value
