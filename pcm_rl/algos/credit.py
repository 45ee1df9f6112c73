"""The source of every chunk's advantage: the group's outcome, a critic, or a user's function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tensordict import NestedKey, TensorDictBase
from torch import Generator, Tensor, nn

from pcm_rl.advantage import outcome_advantage
from pcm_rl.episodes import EPISODE, GROUP, SUCCESS, EpisodeIndex, column_of
from pcm_rl.support.plugins import load_callable


@dataclass(frozen=True)
class Credit:
    """How a step's rows get their advantage.

    Attributes:
        advantage: ``rows [M] -> [M]``, of the complete groups of a step.
        observe: Writes the entries that the advantage reads into the rows, before processes exchange them; None where
            there are none to write.
        reads: Entries that all processes need of all rows, beside actions, padding, phase, outcome and ids.
        fit: Learns from a step's rows after their advantage is written; returns metrics. None learns nothing.
        value: Chance of success before each of ``rows [n]``, which need not be of whole episodes, ``[n]`` in [0, 1];
            None where it has no such number. ``rollouts.cut`` asks for it.
        ready: Whether ``value`` means something by now.
        every_group: Rows of groups with one outcome have credit too, and a group may be a single rollout. False: they
            are never trained on, whatever ``advantage`` gives them.
        metrics: Names of those metrics that are not columns of every ``metrics.csv``.
        module: The module that learns, saved with the run.
        generator: Its randomness, saved with the run.
    """

    advantage: Callable[[TensorDictBase], Tensor]
    observe: Callable[[TensorDictBase], TensorDictBase] | None = None
    reads: tuple[NestedKey, ...] = ()
    fit: Callable[[TensorDictBase], dict[str, float]] | None = None
    value: Callable[[TensorDictBase], Tensor] | None = None
    ready: Callable[[], bool] = lambda: True
    every_group: bool = False
    metrics: tuple[str, ...] = ()
    module: nn.Module | None = None
    generator: Generator | None = None


def outcome_credit(rows: TensorDictBase) -> Tensor:
    """Equation 1 for every row of ``rows [M]``, ``[M]`` float32; 0 in groups with one outcome."""
    success, group, episode = (column_of(rows, key) for key in (SUCCESS, GROUP, EPISODE))
    return outcome_advantage(success, group, EpisodeIndex(episode))


GROUP_CREDIT = Credit(outcome_credit)


def plugin_credit(name: str, options: Mapping[str, Any]) -> Credit:
    """The credit that ``module:function`` names.

    Args:
        name: Of a function ``rows [M] -> advantage [M]``, or of a class, built once per run with ``options``. The class
            needs a method ``advantage`` of this kind and may have the others of :class:`Credit`: ``observe``,
            ``reads``, ``fit``, ``value``, ``ready``, ``every_group``, ``metrics`` and ``generator``. An ``nn.Module``
            is saved with the run.
        options: Keyword arguments; a function has none.

    Raises:
        ValueError: If it names no such function or class, or the arguments do not fit.
    """
    plugin = load_callable(name)
    if isinstance(plugin, type):
        try:
            credit = plugin(**options)
        except TypeError as error:
            raise ValueError(f"{name} with {dict(options)}: {error}") from error
        if not callable(getattr(credit, "advantage", None)):
            raise ValueError(f"{name} has no method advantage(rows)")
        return Credit(
            credit.advantage,
            observe=getattr(credit, "observe", None),
            reads=tuple(getattr(credit, "reads", ())),
            fit=getattr(credit, "fit", None),
            value=getattr(credit, "value", None),
            ready=getattr(credit, "ready", lambda: True),
            every_group=bool(getattr(credit, "every_group", False)),
            metrics=tuple(getattr(credit, "metrics", ())),
            module=credit if isinstance(credit, nn.Module) else None,
            generator=getattr(credit, "generator", None),
        )
    if options:
        raise ValueError(f"{name} is a function and takes no options, got {dict(options)}; a class does")
    return Credit(plugin)
