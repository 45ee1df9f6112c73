"""``pcm-rl plan``: one table of steps, and what would help most."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pcm_rl.config import Config, ConfigError, load_config
from pcm_rl.plan.columns import FULL, Column, columns_of
from pcm_rl.plan.costs import Costs
from pcm_rl.plan.figures import CARDS_SHOWN, MEASURED, Episodes, Simulators
from pcm_rl.plan.levers import what_helps
from pcm_rl.plan.options import Given, changed, split_options
from pcm_rl.plan.recipe import recipe_costs, recipe_episodes, recipe_simulators, slots_of
from pcm_rl.plan.step import Step, Workload, plan_steps
from pcm_rl.reports.console import table_console
from pcm_rl.reports.numbers import TIMES


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        recipe: YAML file; None for the defaults.
        run: Folder of a run whose measured seconds count; None for counts and a card.
        card: A name in :data:`~pcm_rl.plan.figures.CARDS`; None takes the one that was measured.
        methods: Beside ``full-valid`` and the recipe's own; None takes :func:`~pcm_rl.plan.columns.columns_of`'s.
        cards: Numbers of cards.
        overrides: ``key=value`` of figures and of the recipe.
    """

    recipe: str | None = None
    run: str | None = None
    card: str | None = None
    methods: Sequence[str] | None = None
    cards: Sequence[int] = CARDS_SHOWN
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """Inputs and steps.

    Attributes:
        workload: What a step consists of.
        simulators: Of one card.
        costs: Of the policy on one card.
        columns: The methods, ``full-valid`` first.
        steps: All methods of the first number of cards first.
        source: Where the seconds come from, in a sentence.
    """

    workload: Workload
    simulators: Simulators
    costs: Costs
    columns: list[Column]
    steps: list[Step]
    source: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        inputs = {name: dataclasses.asdict(getattr(self, name)) for name in ("workload", "simulators", "costs")}
        return {"source": self.source, **inputs, "steps": [step.as_dict() for step in self.steps]}


def plan(request: Request, *, as_json: bool = False) -> None:
    """Print the plan.

    Args:
        request: What is asked for.
        as_json: As one JSON object, without the lines about what would help.

    Raises:
        ConfigError: A figure is out of range, or figures and recipe do not fit.
        FileNotFoundError: There is no such recipe or run.
    """
    made = make_plan(request)
    if as_json:
        print(json.dumps(made.as_dict(), indent=1))
        return
    table_console().print(_table(made))
    console = Console(highlight=False)
    for line in _lines(made):
        console.print(line, soft_wrap=True, markup=False)


def make_plan(request: Request) -> Plan:
    """Figures from defaults, recipe, run and overrides, in this order, and the steps that follow."""
    if any(number < 1 for number in request.cards) or not request.cards:
        raise ConfigError(f"expected numbers of cards, each at least 1, got {list(request.cards)}")
    given, overrides = split_options(request.overrides)
    if request.run is not None:
        config, simulators, costs, episodes, source = _from_run(request, given, overrides)
    else:
        config, simulators, costs, episodes, source = _from_counts(request, given, overrides)
    simulators, costs, episodes = changed(simulators, given), changed(costs, given), changed(episodes, given)
    workload = Workload(
        groups=config.groups,
        group_size=config.group_size,
        episodes=episodes,
        slots=slots_of(config),
        minibatches=config.update.minibatches,
        epochs=config.update.epochs,
    )
    columns = columns_of(config, request.methods)
    steps = plan_steps(workload, simulators, costs, columns, request.cards)
    return Plan(workload, simulators, costs, columns, steps, source)


_Figures = tuple[Config, Simulators, Costs, Episodes, str]


def _from_run(request: Request, given: Given, overrides: Sequence[str]) -> _Figures:
    from pcm_rl.plan.measured import read_run  # what reads a run draws, too, and drawing takes a second to import

    if request.recipe is not None:
        raise ConfigError(f"--from takes the configuration of {request.run}; leave --config {request.recipe} out")
    unused = [f"{name}.{key}" for name in ("card", "network") for key in given[name]]
    if unused := [f"--card {request.card}"] * (request.card is not None) + unused:
        raise ConfigError(f"--from takes the seconds of {request.run}, so {unused[0]} says nothing; leave it out")
    measured = read_run(Path(str(request.run)), overrides)
    source = (
        f"seconds measured in {measured.steps} steps of {request.run}; a card is one such machine, and all seconds of "
        "the rollout are given to the simulators"
    )
    if measured.costs.update_step_s == 0:
        source += "; its updates are too alike to tell an optimiser step from its chunks, so gains are upper limits"
    rollouts = measured.config.groups * measured.config.group_size
    if not measured.config.env.workers and rollouts != measured.trajectories:
        source += (
            f"; its environments are in one process, where calls are hardly told from chunks, so {rollouts} rollouts a "
            f"step instead of {measured.trajectories} make this rough"
        )
    return measured.config, measured.simulators, measured.costs, measured.episodes, source


def _from_counts(request: Request, given: Given, overrides: Sequence[str]) -> _Figures:
    if request.recipe is None:  # the 7B on LIBERO, whose workers are not those of the defaults
        config = load_config(None, ["policy.family=openvla", *overrides])
        costs, source = recipe_costs(config, request.card or MEASURED, given)
        return config, Simulators(), costs, Episodes(), source
    config = load_config(request.recipe, overrides)
    simulators, episodes = recipe_simulators(config, given), recipe_episodes(config)
    costs, source = recipe_costs(config, request.card or MEASURED, given)
    return config, simulators, costs, episodes, source


def _table(made: Plan) -> Table:
    table = Table("cards", "method", "rollouts", "chunks in update", "rollout, s", "update, s", "step, s")
    for name in ("gain", "card-seconds a rollout", "rows a decision", "binds"):
        table.add_column(name)
    for i, step in enumerate(made.steps):
        method = step.method if step.budget is None else f"{step.method}:{step.budget}"
        cells = [str(step.cards), method, str(step.trajectories), str(step.chunks)]
        cells += [_seconds(value) for value in (step.rollout_s, step.update_s, step.seconds)]
        cells += [f"{step.gain:.2f}{TIMES}", _seconds(step.card_s), f"{step.rows_a_decision:.1f}", step.binds]
        table.add_row(*cells, end_section=(i + 1) % len(made.columns) == 0)
    return table


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _lines(made: Plan) -> Iterator[str]:
    """Where the figures come from, and what would help on the first number of cards."""
    yield made.source
    if any(step.cards > made.workload.groups for step in made.steps):
        yield f"more cards than groups={made.workload.groups}: every card plays one group, so the step is larger"
    chosen = next((column for column in made.columns if column.name not in FULL), made.columns[0])
    cards = made.steps[0].cards
    now, *changes = what_helps(made.workload, made.simulators, made.costs, chosen, cards)
    yield f"what would help with {chosen.name} on {cards} card{'s' * (cards > 1)} ({_seconds(now.seconds)} s a step):"
    for change in sorted(changes, key=lambda change: change.seconds):
        yield f"  {change.what}: {_seconds(change.seconds)} s, {now.seconds / change.seconds:.2f}{TIMES}"
