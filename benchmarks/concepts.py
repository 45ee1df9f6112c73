"""The pictures of docs/concepts.md, from one run of the toy: what is played, what is kept, and why.

    python benchmarks/concepts.py     docs/figures/concepts-*.svg, a minute of a core

It trains ``configs/pick_place.yaml`` with a critic for some steps and then plays one more step without learning from
it. Every rule chooses from these rollouts. Nothing here is a result: it is one step of one seed.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pcm_rl.algos import PCMSampler
from pcm_rl.algos.credit import outcome_credit
from pcm_rl.config import load_config
from pcm_rl.episodes import ADVANTAGE, CHUNK_ID, EPISODE, GROUP, PHASE, SUCCESS
from pcm_rl.phases import Phase
from pcm_rl.reports.colors import FAINT_TEXT_COLOR, PHASE_COLORS, phase_color
from pcm_rl.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
SEED, STEPS, BUDGET, CRITIC_BUDGET = 3, 12, 12, 4
NAMES = {phase: phase.name.lower().replace("_", "-") for phase in Phase}


def main() -> None:
    matplotlib.rcParams |= {"svg.hashsalt": "pcm_rl", "font.size": 9}
    trainer = trained()
    rows = trainer.collect()
    pcm, critic = chosen(rows, outcome_credit(rows), "pcm", BUDGET), credited(trainer, rows)
    group = clearest_group(rows)
    save("group", draw_group(rows, group, {"played": torch.ones(len(rows), dtype=torch.bool),
                                           f"kept by PCM, B = {BUDGET}": pcm[0],
                                           f"kept with a critic, B = {CRITIC_BUDGET}": critic[0]}))  # fmt: skip
    save("scores", draw_scores(pcm[1], pcm[2]))
    save("credit", draw_credit(rows, group, trainer.grpo.credit.value(rows), critic[0]))


def trained() -> Trainer:
    """A run of the toy with a critic, part of its way."""
    changes = [f"seed={SEED}", "advantage.name=critic", "selection.name=top-advantage",
               f"selection.budget={CRITIC_BUDGET}", "record=false", "logger=none"]  # fmt: skip
    trainer = Trainer(load_config(ROOT / "configs" / "pick_place.yaml", changes), lambda line: None)
    trainer.supervised_start()
    for _ in range(STEPS):
        trainer.train_step()
    return trainer


def chosen(rows: TensorDict, advantage: Tensor, rule: str, budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows a rule keeps ``[M]``, and score and keep probability of each phase."""
    rows = rows.copy().set(ADVANTAGE, advantage)
    candidates = (advantage != 0).nonzero().squeeze(1)
    selection = PCMSampler(budget, selection=rule, seed=SEED).select(rows[candidates])
    kept = torch.zeros(len(rows), dtype=torch.bool)
    kept[candidates[selection.index]] = True
    return kept, selection.score, selection.probs


def credited(trainer: Trainer, rows: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the critic's advantages."""
    return chosen(rows, trainer.grpo.credit.advantage(rows), "top-advantage", CRITIC_BUDGET)


def clearest_group(rows: TensorDictBase) -> int:
    """The group with the most even number of successes and failures."""
    groups = rows[GROUP].unique()
    first = rows[CHUNK_ID] == 0
    rates = torch.stack([rows[SUCCESS][first & (rows[GROUP] == group)].float().mean() for group in groups])
    return int(groups[(rates - 0.5).abs().argmin()])


def draw_group(rows: TensorDictBase, group: int, panels: dict[str, Tensor]) -> Figure:
    """The rollouts of a group as strips in the colours of their phases; what is not kept is faint."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    episodes = sorted(rows[EPISODE][rows[GROUP] == group].unique().tolist(),
                      key=lambda number: (not won(rows, number), int((rows[EPISODE] == number).sum())))  # fmt: skip
    for axis, (title, kept) in zip(axes, panels.items(), strict=True):
        for place, number in enumerate(episodes):
            mine = rows[EPISODE] == number
            bars = [(chunk, 0.86) for chunk in rows[CHUNK_ID][mine].tolist()]
            colors = [to_rgba(phase_color(phase), 1.0 if keep else 0.13)
                      for phase, keep in zip(rows[PHASE][mine].tolist(), kept[mine].tolist(), strict=True)]  # fmt: skip
            axis.broken_barh(bars, (place - 0.37, 0.74), facecolors=colors, rasterized=True)
        plain(axis, title, "chunk of eight actions")
        axis.set_yticks(range(len(episodes)), ["success" if won(rows, number) else "failure" for number in episodes])
    axes[0].invert_yaxis()
    figure.legend(handles=[Patch(color=color, label=NAMES[phase]) for phase, color in PHASE_COLORS.items()],
                  loc="outside lower center", ncols=len(PHASE_COLORS), frameon=False)  # fmt: skip
    return figure


def won(rows: TensorDictBase, episode: int) -> bool:
    return bool(rows[SUCCESS][rows[EPISODE] == episode][0])


def draw_scores(score: Tensor, probs: Tensor) -> Figure:
    """C and the keep probability of each phase."""
    figure = Figure(figsize=(9, 2.2), layout="constrained")
    for axis, values, title in zip(
        figure.subplots(1, 2, sharey=True),
        (score, probs),
        ("score: how far actions of successes and failures lie apart", "keep probability, from the scores"),
        strict=True,
    ):
        axis.barh([NAMES[phase] for phase in Phase], values.tolist()[: len(Phase)], color=list(PHASE_COLORS.values()))
        plain(axis, title, "")
    figure.axes[0].invert_yaxis()
    return figure


def draw_credit(rows: TensorDictBase, group: int, value: Tensor, kept: Tensor) -> Figure:
    """The critic's chance of success along a success and along a failure; kept chunks are marked."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axis, success in zip(figure.subplots(1, 2, sharey=True), (True, False), strict=True):
        number = most_kept(rows, group, kept, success)
        mine = rows[EPISODE] == number
        chance = [*value[mine].tolist(), float(success)]
        axis.plot(range(len(chance)), chance, color=FAINT_TEXT_COLOR, linewidth=1)
        for chunk, phase in zip(*(rows[key][mine & kept].tolist() for key in (CHUNK_ID, PHASE)), strict=True):
            axis.plot([chunk, chunk + 1], chance[chunk : chunk + 2], color=phase_color(phase), linewidth=4)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axis, "a success" if success else "a failure", "chunk; the thick ones are kept")
    figure.axes[0].set_ylabel("chance of success")
    return figure


def most_kept(rows: TensorDictBase, group: int, kept: Tensor, success: bool) -> int:
    """The rollout of a group with this outcome of which most is kept."""
    mine = (rows[GROUP] == group) & (rows[SUCCESS] == success)
    return max(rows[EPISODE][mine].unique().tolist(), key=lambda number: int((kept & (rows[EPISODE] == number)).sum()))


def plain(axis: Axes, title: str, label: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(label)
    axis.spines[["top", "right"]].set_visible(False)


def save(name: str, figure: Figure) -> None:
    path = FIGURES / f"concepts-{name}.svg"
    figure.savefig(path, metadata={"Date": None}, dpi=200)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
