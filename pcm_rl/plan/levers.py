"""What would shorten a step: the same plan with one thing changed at a time."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from pcm_rl.plan.columns import Column
from pcm_rl.plan.costs import Costs
from pcm_rl.plan.figures import Simulators
from pcm_rl.plan.step import Workload, plan_steps


class Lever(NamedTuple):
    """One change.

    Attributes:
        what: In words.
        seconds: Of a step with it.
    """

    what: str
    seconds: float


def what_helps(workload: Workload, simulators: Simulators, costs: Costs, column: Column, cards: int) -> list[Lever]:
    """A step as it is, then with one thing changed at a time.

    Args:
        workload: What a step consists of.
        simulators: Of one card.
        costs: Of the policy on one card.
        column: The method.
        cards: Number of cards.
    """

    def seconds(simulators: Simulators = simulators, costs: Costs = costs, column: Column = column) -> float:
        return plan_steps(workload, simulators, costs, [column], [cards])[0].seconds

    more = dataclasses.replace(simulators, workers=2 * simulators.workers)
    with_cores = dataclasses.replace(more, cores=2 * simulators.cores)
    levers = [
        Lever("as it is", seconds()),
        Lever("simulators twice as fast", seconds(simulators.faster(2))),
        Lever("twice as many environments on the same cores", seconds(more)),
        Lever("twice as many environments and cores", seconds(with_cores)),
        Lever("decisions twice as fast", seconds(costs=costs.faster(decisions=2))),
        Lever("an update twice as fast", seconds(costs=costs.faster(update=2))),
    ]
    if column.rule.budget != "none":
        half = dataclasses.replace(column, budget=max(column.budget // 2, 1))
        levers.append(Lever(f"a budget of {half.budget} instead of {column.budget}", seconds(column=half)))
    return levers
