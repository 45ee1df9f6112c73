"""The folder of a training run -> one self-contained HTML page: figures, tables and animations, without other files.

A card says what a run has not written yet, so the page works during training and after a failure.
"""

from __future__ import annotations

from pathlib import Path

from pcm_rl.reports import cards
from pcm_rl.reports.headline import headline
from pcm_rl.reports.html import CSS, TEMPLATE, esc
from pcm_rl.reports.run_files import RunFiles
from pcm_rl.support.writing import replacing


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        run: Folder with ``metrics.csv`` and, each optional, ``config.yaml``, ``evaluation.csv``, ``summary.json``,
            ``budget.json``, ``recordings/success.safetensors`` and ``recordings/failure.safetensors``.

    Returns:
        The path of the page. It is replaced in one move, so it is never incomplete.

    Raises:
        FileNotFoundError: If the folder has no ``metrics.csv``.
    """
    run = Path(run)
    if not (run / "metrics.csv").is_file():
        raise FileNotFoundError(
            f"{run / 'metrics.csv'} does not exist, so there is nothing to report. Give the folder of a training run "
            "that has finished at least one step; it holds config.yaml and metrics.csv."
        )
    page = run / "report.html"
    with replacing(page) as partial:
        partial.write_text(_render(RunFiles(run)), encoding="utf-8")
    return page


def _render(run: RunFiles) -> str:
    body = (
        cards.learning_curve(run), cards.time_split(run), cards.score(run), cards.keep_probability(run),
        cards.candidates(run), cards.kept(run), cards.budget_curve(run), cards.update_cost(run),
        cards.rollout(run, "success"), cards.rollout(run, "failure"), cards.health(run), cards.cuts(run),
        cards.notes(run), cards.configuration(run), cards.glossary(run),
    )  # fmt: skip
    title = esc(f"{run.setting('env.id')} · {run.setting('selection.name')}")
    return TEMPLATE.substitute(title=title, css=CSS, hero=headline(run), cards="\n".join(body))
