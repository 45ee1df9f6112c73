"""The methods that a plan compares, each with its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pcm_rl.config import METHODS, Config, ConfigError, Method
from pcm_rl.rules import Rule, find_rule

FULL = ("full-valid", "full-critic")  # all executed chunks, with groups and without


@dataclass(frozen=True)
class Column:
    """A method with its budget.

    Attributes:
        name: Of the method.
        method: Selection, padding and advantage.
        budget: B, chunks a trajectory.
        every_group: Groups of one outcome are learned from too.
    """

    name: str
    method: Method
    budget: int
    every_group: bool = False

    @property
    def rule(self) -> Rule:
        """Its rule."""
        return find_rule(self.method.selection)

    @property
    def same(self) -> tuple[Method, int]:
        """Equal for columns that are one: a budget counts only where the rule has one."""
        return self.method, 0 if self.rule.budget == "none" else self.budget


def columns_of(config: Config, names: Sequence[str] | None = None) -> list[Column]:
    """All executed chunks first, then the configuration's own method, then those that are named, each once.

    Args:
        config: Its ``selection.budget`` is that of a method without a number.
        names: ``NAME`` or ``NAME:BUDGET``, names of :data:`~pcm_rl.config.methods.METHODS`; None takes ``pcm`` and
            ``top-critic:4``, without ``pcm`` where rollouts have no group.

    Raises:
        ConfigError: A name is unknown, a budget is no number of at least 1, or a method needs groups and there are
            none.
    """
    alone = config.group_size == 1
    if names is None:
        names = ("top-critic:4",) if alone else ("pcm", "top-critic:4")
    mine = Method(config.selection.name, config.selection.padding, config.advantage.name)
    own = Column(config.method, mine, config.selection.budget, _every_group(mine, config))
    assert config.selection.rule  # of one's own: refused here if there is none
    columns = [_named(FULL[alone], config), own, *(_named(name, config) for name in names)]
    found: dict[tuple[Method, int], Column] = {}
    for column in columns:
        found.setdefault(column.same, column)
    return list(found.values())


def _named(text: str, config: Config) -> Column:
    name, colon, number = text.partition(":")
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    if colon and not (number.isdecimal() and int(number) >= 1):
        raise ConfigError(f"expected METHOD or METHOD:BUDGET with a budget of at least 1, got {text!r}")
    column = Column(name, METHODS[name], int(number or config.selection.budget), _every_group(METHODS[name], config))
    if colon and column.rule.budget == "none":
        raise ConfigError(f"{name} has no budget, got {text!r}")
    if column.method.advantage == "group" and config.group_size == 1:
        raise ConfigError(f"{name} compares the rollouts of a group, and group_size=1 leaves nothing to compare")
    return column


def _every_group(method: Method, config: Config) -> bool:
    return method.advantage == "critic" and config.advantage.every_group
