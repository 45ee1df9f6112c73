"""The end of a run: cost of an update, films, summary, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.config import Config
from pcm_rl.reports.page import write_report
from pcm_rl.reports.run_end import film_run, run_end_text, write_budget
from pcm_rl.rollouts.evaluate import Evaluation
from pcm_rl.support.writing import replacing
from pcm_rl.training.memory import memory_had
from pcm_rl.training.update_cost import profile_update


def report_run(
    config: Config,
    policy: VLAWrapperBase,
    batch: TensorDictBase,
    probs: Tensor,
    evaluation: Evaluation,
    summary: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Write films, summary and report of a finished run, and say where the report is.

    Args:
        config: The run.
        policy: As trained.
        batch: ``[M]`` rows with a signal, of the last step that had any; updates are measured on them. May be empty.
        probs: Keep probabilities, ``[K]``.
        evaluation: The last one.
        summary: Written as ``summary.json``, the measured costs added.
        say: Called with each line of text.
    """
    if len(batch):
        try:
            write_budget(config, batch)
            costs = profile_update(policy, batch, config, probs=probs, room=memory_had())
            summary["profile"] = [cost.as_dict() for cost in costs]
        except Exception as error:  # such as too little memory: the run itself is complete
            say(f"the cost of an update was not measured: {error}")
    else:
        say("no group had both outcomes, so the cost of an update was not measured")
    with replacing(config.folder / "summary.json") as partial:
        partial.write_text(json.dumps(summary, indent=1))
    if config.record:
        film_run(config, evaluation, say)
    say(run_end_text(summary, write_report(config.folder)))
