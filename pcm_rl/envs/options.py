"""Reset options of E environments, dealt out."""

from __future__ import annotations

from typing import Any


def own_options(options: dict[str, Any] | None, index: int, num_envs: int | None) -> dict[str, Any] | None:
    """What one of E environments gets of the options for all: its entry of every array, list and tuple.

    Args:
        options: Each an array, list or tuple `[E]`, or one value for all; `"reset_mask"` is dropped.
        index: Which environment.
        num_envs: E, to have lengths checked.

    Raises:
        ValueError: An option has not E entries.
    """
    if options is None:
        return None
    return {key: _own(key, value, index, num_envs) for key, value in options.items() if key != "reset_mask"}


def _own(key: str, value: Any, index: int, num_envs: int | None) -> Any:
    if not isinstance(value, list | tuple) and getattr(value, "ndim", 0) == 0:
        return value
    count = len(value)
    if count <= index or num_envs not in (None, count):
        expected = f"at least {index + 1}" if num_envs is None else str(num_envs)
        raise ValueError(f"option {key!r} has {count} entries, expected {expected}: one an environment")
    entry = value[index]
    return entry.item() if getattr(entry, "ndim", None) == 0 else entry  # a NumPy or torch scalar
