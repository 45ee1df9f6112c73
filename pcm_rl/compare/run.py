"""``pcm-rl compare``: methods and variants x budgets x seeds in parallel processes; raw tables and statistics."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pcm_rl.compare.jobs import Job, Outcome, run_jobs
from pcm_rl.compare.plan import Comparison, PlannedRun, plan_runs, prepare_run, run_state
from pcm_rl.compare.report import MEASURES, measure_table, spending_table, statistics_rows
from pcm_rl.compare.tables import Row, write_csv, write_tables
from pcm_rl.config import Config, ConfigError
from pcm_rl.reports.console import table_console
from pcm_rl.reports.numbers import duration
from pcm_rl.rollouts.demonstrations import demonstrations
from pcm_rl.rollouts.saved import has_demonstrations
from pcm_rl.support.room import check_room
from pcm_rl.training.trainer import say_now

BASELINE = "full-valid"


def compare(
    comparison: Comparison, *, jobs: int = 1, baseline: str | None = None, say: Callable[[str], None] = say_now
) -> Path:
    """Do the runs that are not finished yet, then write and print what all of them show.

    Every run is a ``pcm-rl train`` in a process of its own: its numbers do not depend on ``jobs`` or on the other runs.
    All columns of a seed start from the same policy and meet the same initial states.

    Args:
        comparison: What to compare.
        jobs: Processes at a time.
        baseline: Method or variant to which differences are taken; None is ``full-valid``, or the first column where
            there is none.
        say: Gets a line a finished run.

    Returns:
        The folder, with ``compare.csv``, ``compare-evals.csv``, ``compare-steps.csv`` (see
        :func:`~pcm_rl.compare.tables.write_tables`), ``compare-stats.csv`` and a folder a run.

    Raises:
        ConfigError: The plan is not possible, or a folder holds a run of another configuration.
        FileNotFoundError: There is no such recipe.
        OSError: The folder cannot be written to.
        ChildProcessError: Runs failed; the others are done, and the tables are of them.
    """
    runs = plan_runs(comparison)
    methods = list(dict.fromkeys(run.method for run in runs))
    base = baseline or (BASELINE if BASELINE in methods else methods[0])
    if base not in methods:
        raise ConfigError(f"the baseline {base!r} is not compared; choose from {', '.join(methods)}")
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    folder = comparison.folder
    check_room(folder)
    todo = [run for run in runs if run_state(run) != "finished"]
    say(f"{len(runs)} runs in {folder}: {len(runs) - len(todo)} finished, {len(todo)} to do, {jobs} at a time")
    _record_demonstrations(todo, say)
    progress = _Progress(len(runs) - len(todo), runs, say)
    try:
        run_jobs([_job(run) for run in todo], jobs, progress)
    except KeyboardInterrupt:
        say(f"interrupted: {progress.finished} of {len(runs)} runs are finished, the others stopped")
        raise
    finally:
        results = write_tables([run for run in runs if run_state(run) == "finished"], folder)
        aggregates = statistics_rows(results, base)
        write_csv(folder / "compare-stats.csv", aggregates)
    if results:
        _print_statistics(results, aggregates, base)
        say(f"written: compare.csv, -evals, -steps and -stats in {folder}")
    if progress.failed:
        raise ChildProcessError(
            f"{len(progress.failed)} of {len(runs)} runs failed: {', '.join(progress.failed)}; the same command tries "
            "them again"
        )
    return folder


def _print_statistics(results: Sequence[Row], aggregates: Sequence[Row], baseline: str) -> None:
    console = table_console()
    tables = [measure_table(aggregates, measure, baseline) for measure in MEASURES]
    for table in (*tables, spending_table(results, baseline)):
        console.print(table)


class _Progress:
    """Says a line for each run that ended, and remembers which failed."""

    def __init__(self, finished: int, runs: Sequence[PlannedRun], say: Callable[[str], None]) -> None:
        self.finished, self.say = finished, say
        self.failed: list[str] = []
        self._folders = {run.name: run.config.folder for run in runs}

    def __call__(self, outcome: Outcome) -> None:
        name = outcome.job.name
        if outcome.error is not None:
            self.failed.append(name)
            self.say(f"{name}: FAILED, {outcome.error}")
            return
        self.finished += 1
        summary = json.loads((self._folders[name] / "summary.json").read_text())
        before, after = (summary[when]["success"] for when in ("before", "after"))
        left = f"about {duration(round(outcome.left))} left" if outcome.left else "none left"
        self.say(
            f"[{self.finished}/{len(self._folders)}] {name}: success {before:.1%} -> {after:.1%} in "
            f"{duration(round(outcome.seconds))}; {left}"
        )


def _job(run: PlannedRun) -> Job:
    return Job(run.name, run.config.folder / "train.log", lambda: prepare_run(run), run.config.threads or 1)


def _record_demonstrations(runs: Sequence[PlannedRun], say: Callable[[str], None]) -> None:
    """Record each missing dataset once, before several processes would do it at the same time."""
    missing: dict[str, Config] = {}
    for run in runs:
        config = run.config
        path = config.demos.path
        if path is not None and config.policy.init is None and config.sft.steps and not has_demonstrations(config):
            missing.setdefault(path, config)
    for path, config in missing.items():
        say(f"demonstrations for all runs: {path}, recorded with seed {config.seed}")
        demonstrations(config, say)
