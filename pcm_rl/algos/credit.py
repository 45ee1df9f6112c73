"""What gives every chunk its advantage: the group's outcome, a critic, or a function of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tensordict import NestedKey, TensorDictBase
from torch import Generator, Tensor, nn

from pcm_rl.advantage import outcome_advantage
from pcm_rl.episodes import EPISODE, GROUP, SUCCESS, EpisodeIndex
from pcm_rl.support.plugins import load_plugin


@dataclass(frozen=True)
class Credit:
    """How a step's rows get their advantage.

    Attributes:
        advantage: ``rows [M] -> [M]``, of the complete groups of a step.
        observe: Writes into the rows what the advantage looks at, before several processes show each other the entries
            that all of them need; None where nothing has to be written.
        reads: Entries that all processes need of all rows, beside actions, padding, phase, outcome and ids.
        fit: Learns from a step's rows after they have got their advantage; gives metrics. None learns nothing.
        metrics: Names of those metrics that ``metrics.csv`` does not have anyway.
        module: What it learns, saved with the run.
        generator: Its randomness, saved with the run.
    """

    advantage: Callable[[TensorDictBase], Tensor]
    observe: Callable[[TensorDictBase], TensorDictBase] | None = None
    reads: tuple[NestedKey, ...] = ()
    fit: Callable[[TensorDictBase], dict[str, float]] | None = None
    metrics: tuple[str, ...] = ()
    module: nn.Module | None = None
    generator: Generator | None = None


def outcome_credit(rows: TensorDictBase) -> Tensor:
    """Equation 1 for every row of ``rows [M]``, ``[M]`` float32; 0 in groups of one outcome."""
    return outcome_advantage(rows.get(SUCCESS), rows.get(GROUP), EpisodeIndex(rows.get(EPISODE)))


GROUP_CREDIT = Credit(outcome_credit)


def credit_of_ones_own(name: str, options: Mapping[str, Any]) -> Credit:
    """The credit that ``module:function`` names.

    Args:
        name: Of a function ``rows [M] -> advantage [M]``; or of a class, made once a run with ``options``, which has
            such a method ``advantage`` and may have ``observe``, ``reads``, ``fit``, ``metrics`` and ``generator``
            as :class:`Credit` has them. One that is an ``nn.Module`` is saved with the run.
        options: Keyword arguments; a function has none.

    Raises:
        ValueError: If it names nothing of that kind, or the arguments do not fit.
    """
    found = load_plugin(name)
    if isinstance(found, type):
        try:
            made = found(**options)
        except TypeError as error:
            raise ValueError(f"{name} with {dict(options)}: {error}") from error
        if not callable(getattr(made, "advantage", None)):
            raise ValueError(f"{name} has no method advantage(rows)")
        return Credit(
            made.advantage,
            observe=getattr(made, "observe", None),
            reads=tuple(getattr(made, "reads", ())),
            fit=getattr(made, "fit", None),
            metrics=tuple(getattr(made, "metrics", ())),
            module=made if isinstance(made, nn.Module) else None,
            generator=getattr(made, "generator", None),
        )
    if not callable(found):
        raise ValueError(f"{name} is {found!r}; expected a function rows -> advantage, or a class with that method")
    if options:
        raise ValueError(f"{name} is a function and takes no options, got {dict(options)}; a class does")
    return Credit(found)
