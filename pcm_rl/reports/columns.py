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
    Column(
        "success",
        "0 to 1",
        "share of the sampled trajectories that succeeded; a trajectory that was cut counts as a success at the rate "
        "cuts_wrong / cuts_checked of the run so far, 0 before one was checked: an estimate that lags where this rate "
        "changes",
        "rising",
    ),
    Column("successes", "count", "trajectories that succeeded; none that was cut"),
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
    Column(
        "kl_acting",
        "nats",
        "kl_approx before the first update of the step: by rounding, lora.merge or rollouts.overlap",
        "0 where the policy that acted is the one that is trained",
    ),
    Column("mean_ratio", "", "mean probability ratio of a token, new to old policy", "near 1"),
    Column("max_ratio", "", "largest probability ratio of a token, new to old policy", "below 10"),
    Column("grad_norm", "", "norm of the gradient before clipping", "steady, without spikes"),
    Column("lr", "", "learning rate of the update"),
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
    Column("rollouts_cut", "count", "trajectories cut because their chance of success stayed below rollouts.cut"),
    Column("cuts_checked", "count", "trajectories that would have been cut, but were exempt and played to their end"),
    Column("cuts_wrong", "count", "those of them that succeeded: a cut would have been wrong", "few of cuts_checked"),
    Column(
        "cut_steps_saved",
        "steps",
        "environment steps that the cut trajectories had left up to the time limit (of the longest task), so at most "
        "these were saved: some would have succeeded before",
    ),
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
    Column("env_steps", "steps", "environment steps of all training rollouts so far"),
    Column("gradient_chunks", "chunks", "chunks that went through the backward pass so far, once per epoch"),
    Column("train_s", "s", "time of all training steps so far, without evaluations"),
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
