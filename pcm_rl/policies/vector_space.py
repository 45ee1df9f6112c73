"""What the policies on states need of an environment: one vector, and chunks of actions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gymnasium import spaces


def sizes(observation_space: spaces.Space[Any] | None, action_space: spaces.Box) -> tuple[int, int, int]:
    """S, L and D of a policy that fits.

    Args:
        observation_space: ``Box [S]``.
        action_space: ``Box [L, D]``.

    Raises:
        ValueError: If the observation is not a vector; the message says what to do.
    """
    shape, chunk = getattr(observation_space, "shape", None), action_space.shape
    if shape is None or len(shape) != 1 or len(chunk) != 2:
        raise ValueError(f"expected a vector [S] as observation, got {_described(observation_space)}")
    return shape[0], chunk[0], chunk[1]


def _described(space: spaces.Space[Any] | None) -> str:
    if space is None:
        return "no observation: such a policy cannot be built, and so not exported, without its environment"
    if not isinstance(space, spaces.Dict):
        return f"{space}: images need a policy that sees, such as policy.family=openvla or one of your own"
    vectors = [name for name, part in _parts(space) if isinstance(part, spaces.Box) and len(part.shape) == 1]
    others = [name for name, part in _parts(space) if name not in vectors]
    if not vectors:
        return f"{', '.join(others)}: images need a policy that sees, such as policy.family=openvla or one of your own"
    names = f"several parts ({', '.join(vectors)}): name those that it reads, env.observation=[{','.join(vectors)}]"
    seen = f". {', '.join(others)} would not be seen: that needs a policy.family that sees images"
    return names + (seen if others else "")


def _parts(space: spaces.Dict, prefix: str = "") -> Iterator[tuple[str, spaces.Space[Any]]]:
    for name, part in space.spaces.items():
        if isinstance(part, spaces.Dict):
            yield from _parts(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part
