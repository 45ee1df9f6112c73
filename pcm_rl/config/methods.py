"""Names of whole methods, as comparisons call them: a selection, its padding and the advantage that it works with."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """What a name stands for.

    Attributes:
        selection: ``selection.name``.
        padding: ``selection.padding``.
        advantage: ``advantage.name``.
    """

    selection: str
    padding: str = "drop"
    advantage: str = "group"

    def overrides(self) -> tuple[str, ...]:
        """The ``key=value`` changes that make a configuration one of this method."""
        return tuple(f"{key}={value}" for key, value in zip(SET_BY_METHODS, self, strict=True))


SET_BY_METHODS = ("selection.name", "selection.padding", "advantage.name")
METHODS: dict[str, Method] = {
    "pcm": Method("pcm"),
    "full-valid": Method("none"),
    "full-padded": Method("none", padding="keep"),
    "random-valid": Method("random"),
    "top-phase": Method("top-phase"),
    "top-advantage": Method("top-advantage"),
    "top-critic": Method("top-advantage", advantage="critic"),
    "full-critic": Method("none", advantage="critic"),
}
