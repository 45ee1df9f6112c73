"""What callers give to environments: reset options, split and checked, and actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def chosen_init_state(options: Mapping[str, Any], count: int, name: str, rng: np.random.Generator) -> int:
    """The initial state that a reset names, or a drawn one.

    Args:
        options: `{"init_state": k}`, or empty.
        count: Number of initial states there are.
        name: Of the task, for errors.
        rng: Draws one where none is named.

    Returns:
        An index in `[0, count)`.

    Raises:
        ValueError: An option is unknown, or `k` is no index of an initial state.
    """
    if unknown := sorted(set(options) - {"init_state"}):
        raise ValueError(f"unknown reset options {unknown}; the only one is 'init_state'")
    if "init_state" not in options:
        return int(rng.integers(count))
    index = options["init_state"]
    if not isinstance(index, int | np.integer) or isinstance(index, bool) or not 0 <= index < count:
        raise ValueError(f"init_state is {index!r}; {name} has 0 to {count - 1}")
    return int(index)


def checked_action(
    action: Any, dimensions: int, where: str, dtype: type[np.floating[Any]] = np.float64
) -> NDArray[Any]:
    """An action as floats `[D]`.

    Args:
        action: What the caller gave.
        dimensions: D.
        where: Task, initial state and step, for the error.
        dtype: Of the result.

    Raises:
        ValueError: It has another shape, or is not finite in this dtype.
    """
    array = np.asarray(action, dtype=dtype)
    if array.shape != (dimensions,) or not np.isfinite(array).all():
        got = f"{array.tolist()} of shape {array.shape}"
        raise ValueError(f"expected a finite action of shape ({dimensions},), got {got} in {where}")
    return array


def entry_options(options: dict[str, Any] | None, index: int, num_envs: int | None) -> dict[str, Any] | None:
    """The options of one of E environments: its entry of every array, list and tuple.

    Args:
        options: Each an array, list or tuple `[E]`, or one value for all; `"reset_mask"` is dropped.
        index: Which environment.
        num_envs: E, to have lengths checked.

    Raises:
        ValueError: An option does not have E entries.
    """
    if options is None:
        return None
    return {key: _entry(key, value, index, num_envs) for key, value in options.items() if key != "reset_mask"}


def _entry(key: str, value: Any, index: int, num_envs: int | None) -> Any:
    if not isinstance(value, list | tuple) and getattr(value, "ndim", 0) == 0:
        return value
    count = len(value)
    if count <= index or num_envs not in (None, count):
        expected = f"at least {index + 1}" if num_envs is None else str(num_envs)
        raise ValueError(f"option {key!r} has {count} entries, expected {expected}: one an environment")
    entry = value[index]
    return entry.item() if getattr(entry, "ndim", None) == 0 else entry  # a NumPy or torch scalar
