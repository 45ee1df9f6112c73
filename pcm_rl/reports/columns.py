"""All columns of ``metrics.csv`` and ``evaluation.csv``: unit, meaning and healthy range.

The files' headers, the legend of a run's report and ``docs/metrics.md`` are made from these two tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pcm_rl.phases import Phase

EACH_PHASE = "<phase>"  # in a name: one column for each phase, with its label in this place


class Column(NamedTuple):
    """One quantity.

    Attributes:
        name: Header of its column; with :data:`EACH_PHASE` in it, of one column for each phase.
        unit: Its unit; empty for a number without a unit.
        meaning: Its meaning.
        healthy: Range in a good run; empty where it depends on the task.
    """

    name: str
    unit: str
    meaning: str
    healthy: str = ""

    def headers(self) -> list[str]:
        """Headers in the file, in order."""
        return (
            [self.name.replace(EACH_PHASE, phase.label) for phase in Phase] if EACH_PHASE in self.name else [self.name]
        )


METRICS = (
    Column("step", "", "training step, one update of the policy"),
    Column("success", "0 to 1", "share of the sampled trajectories that succeeded", "rising"),
    Column("trajectories", "count", "trajectories rolled out in the step", "groups x group size"),
    Column("groups", "count", "groups: trajectories of one task and one initial state"),
    Column(
        "groups_mixed",
        "count",
        "groups with both a success and a failure; without a critic only these carry signal",
        "above 0",
    ),
    Column("groups_dropped", "count", "groups given up because their simulator failed again and again", "0"),
    Column("chunks_valid", "chunks", "executed chunks that could have been kept"),
    Column("chunks_kept", "chunks", "chunks that went through the backward pass"),
    Column("kept_fraction", "0 to 1", "chunks_kept / chunks_valid", "the lower, the cheaper the update"),
    Column("loss", "", "clipped GRPO objective, negated", "around 0; says little"),
    Column("entropy", "nats", "mean entropy of an action token", "falls slowly, not to 0"),
    Column("clip_fraction", "0 to 1", "share of action tokens whose ratio was clipped", "below 0.2"),
    Column("kl_approx", "nats", "estimated divergence from the policy that acted", "below 0.05"),
    Column("mean_ratio", "", "mean probability ratio of a token, new to old policy", "near 1"),
    Column("max_ratio", "", "largest probability ratio of a token, new to old policy", "below 10"),
    Column("grad_norm", "", "norm of the gradient before clipping", "steady, without spikes"),
    Column(
        "brier",
        "0 to 1",
        "mean squared error of the critic's chance of success, before it learned from the step (Brier score)",
        "below 0.25; falling",
    ),
    Column(
        "explained_variance",
        "",
        "share of the outcomes' variance that the critic foresaw; empty where nearly all outcomes are alike",
        "above 0",
    ),
    Column("rollout_s", "s", "time to collect the trajectories"),
    Column("select_s", "s", "time to score the phases, draw the chunks and fit the critic", "far below update_s"),
    Column("update_s", "s", "time of the forward and backward passes and the optimiser"),
    Column("step_s", "s", "time of the whole step"),
    Column("env_steps", "steps", "environment steps executed in the step"),
    Column(
        "worker_restarts", "count", "simulators that failed, whose episodes were played again, since the run began", "0"
    ),
    Column(
        f"score/{EACH_PHASE}",
        "action units",
        "C: distance of the mean actions of successes and failures",
        "differs by phase",
    ),
    Column(
        f"keep_prob/{EACH_PHASE}", "0 to 1", "weight that a chunk of the phase is drawn with", "from the floor to 1"
    ),
    Column(f"candidates/{EACH_PHASE}", "chunks / trajectory", "chunks of the phase that could have been kept"),
    Column(f"kept/{EACH_PHASE}", "chunks / trajectory", "chunks of the phase that were kept"),
)
EVALUATION = (
    Column("step", "", "training step after which the policy was evaluated; 0 is before training"),
    Column("success", "0 to 1", "share of the episodes that succeeded, from held-out initial states", "rising"),
    Column("low", "0 to 1", "lower end of its 95 % interval (Wilson)"),
    Column("high", "0 to 1", "upper end of its 95 % interval (Wilson)"),
    Column("successes", "count", "episodes that succeeded"),
    Column("episodes", "count", "episodes of the evaluation", "eval_episodes"),
)


def headers(columns: Sequence[Column]) -> list[str]:
    """Headers of a file with these columns, in order."""
    return [header for column in columns for header in column.headers()]


def metrics_table() -> str:
    """The columns of ``metrics.csv`` as a Markdown table."""
    return _markdown(METRICS)


def evaluation_table() -> str:
    """The columns of ``evaluation.csv`` as a Markdown table."""
    return _markdown(EVALUATION)


def _markdown(columns: Sequence[Column]) -> str:
    rows = [("column", "unit", "meaning", "healthy"), ("---",) * 4]
    rows += [(f"`{column.name}`", *column[1:]) for column in columns]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)
