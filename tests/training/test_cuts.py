"""Hopeless rollouts of a run are cut: not before the critic has learned, never in evaluation, counted, and resumed."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from tensordict import TensorDict

from pcm_rl.algos.credit import Credit, outcome_credit
from pcm_rl.cli import main
from pcm_rl.config import METHODS, ConfigError, RolloutConfig, load_run_config
from pcm_rl.episodes import CHUNK_ID, CUT, CUT_EXEMPT, EPISODE, IS_PAD, OUTCOME, SUCCESS
from pcm_rl.rollouts.cut import exempt_rollouts
from pcm_rl.rollouts.rows import rollout_metrics
from pcm_rl.training.cuts import Cuts
from pcm_rl.training.trainer import Trainer, train


class Hopeless:
    """An advantage of one's own with a chance of success."""

    def advantage(self, rows):
        return outcome_credit(rows)

    def value(self, rows):
        return torch.zeros(len(rows))


def plugin(name):
    return f"advantage.name={__name__}:{name}"


def silent(line: str) -> None:
    """Say nothing."""


def table(config):
    with (config.folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in csv.DictReader(file)]


CRITIC = [
    *METHODS["top-critic"].overrides(), "advantage.steps=20", "rollouts.cut=0.3", "rollouts.cut_after=2",
    "rollouts.cut_exempt=0.3", "eval_every=0", "steps=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tiny):
    lines: list[str] = []
    config = tiny("whole", *CRITIC)
    trainer = train(config, say=lines.append)
    return config, trainer, lines


def test_a_run_that_cuts_resumes_bit_for_bit(tiny, whole):
    config, _, _ = whole
    trainer = Trainer(dataclasses.replace(config, name="cut"), silent)
    trainer.start()
    for _ in range(3):  # the checkpoint is of step 2: the third step is lost and done again
        trainer.output.log.step(trainer.train_step())
        if trainer.step == 2:
            trainer.save()
    trainer.env.close()
    torch.manual_seed(999)
    train(load_run_config(trainer.folder), resume=True, say=silent)
    assert table(config) == table(trainer.config)
    for file in ("policy", "optimizer", "random", "critic"):
        a, b = (load_file(folder / "checkpoint" / f"{file}.safetensors") for folder in (config.folder, trainer.folder))
        assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a), file


def test_nothing_is_cut_before_the_critic_has_learned_and_counts_go_on_in_the_checkpoint(whole):
    config, trainer, lines = whole
    rows = table(config)
    cut, checked, wrong = ([int(row[name]) for row in rows] for name in ("rollouts_cut", "cuts_checked", "cuts_wrong"))
    assert cut[0] == checked[0] == 0 < sum(cut) and sum(checked) > 0
    state = json.loads((config.folder / "checkpoint" / "state.json").read_text())
    assert state["cuts"] == trainer.cuts.state_dict() == {"checked": sum(checked), "wrong": sum(wrong)}
    told = [line for line in lines if line.startswith("step ")]
    assert all(f"  cut {count}  " in line for line, count in zip(told, cut, strict=True))
    seen = seen_wrong = 0
    for row, n, looked_at, mistaken in zip(rows, cut, checked, wrong, strict=True):
        seen, seen_wrong = seen + looked_at, seen_wrong + mistaken
        expected = (int(row["successes"]) + (seen_wrong / seen if seen else 0) * n) / 18
        assert float(row["success"]) == pytest.approx(expected, abs=1e-12)
    page = (config.folder / "report.html").read_text()
    assert 'id="cuts"' in page and f"<b>{sum(cut)}</b> of 72 rollouts" in page
    assert f"({sum(wrong)}/{sum(checked)})" in page


def test_evaluation_is_never_cut_and_the_chance_is_that_of_ones_own_value(tiny):
    trainer = Trainer(tiny("own", plugin("Hopeless"), "rollouts.cut=0.5", "rollouts.cut_exempt=0.5"), silent)
    free = Trainer(tiny("free"), silent)
    try:
        of, than = trainer.evaluate(), free.evaluate()
        assert torch.equal(of.outcome, than.outcome) and torch.equal(of.steps, than.steps)
        assert CUT not in of.rows.keys()
        rows = trainer.collect()
        length = torch.bincount(rows[EPISODE])
        exempt = exempt_rollouts(trainer.config.seed, 0, 18, 0.5)
        assert torch.equal(rows[CUT_EXEMPT][rows[CHUNK_ID] == 0], exempt)
        assert length[~exempt].tolist() == [2] * 9 and int(length[exempt].min()) > 2
        assert torch.equal(rows[OUTCOME], torch.where(rows[CUT_EXEMPT], rows[SUCCESS].float(), 0.0))
        again = trainer.collect()  # the numbers of the rollouts go on
        assert torch.equal(again[CUT_EXEMPT][again[CHUNK_ID] == 0], exempt_rollouts(trainer.config.seed, 18, 18, 0.5))
        assert not {CUT, OUTCOME} & set(free.collect().keys())
    finally:
        trainer.env.close()
        free.env.close()


def test_exempt_rollouts_do_not_depend_on_the_number_of_processes(tiny):
    trainer = Trainer(tiny("split", plugin("Hopeless"), "rollouts.cut=0.5", "rollouts.cut_exempt=0.3"), silent)
    trainer.env.close()
    groups = torch.arange(12, 17)
    whole = trainer.cuts.of(groups).exempt
    assert torch.equal(torch.cat([trainer.cuts.of(share).exempt for share in groups.tensor_split(3)]), whole)
    assert trainer.cuts.of(groups[:0]).exempt.shape == (0,)


def rows_of(cut, exempt, success, steps):
    episode = torch.arange(len(steps))
    return TensorDict(
        {
            EPISODE: episode, CHUNK_ID: torch.zeros_like(episode), CUT: torch.tensor(cut),
            CUT_EXEMPT: torch.tensor(exempt), SUCCESS: torch.tensor(success), "group_id": episode,
            IS_PAD: torch.arange(9) >= torch.tensor(steps).unsqueeze(-1),
        },
        batch_size=[len(steps)],
    )  # fmt: skip


def test_cuts_count_with_the_rate_of_wrong_cuts_so_far(tiny):
    trainer = Trainer(tiny("rates", plugin("Hopeless"), "rollouts.cut=0.5"), silent)
    trainer.env.close()
    config, env = trainer.config, trainer.env
    cuts = Cuts(config, env, Credit(outcome_credit, value=lambda rows: torch.ones(len(rows))))

    def count(*columns):
        rows = rows_of(*columns)
        return cuts.count(rollout_metrics(rows, 4), rows)

    # nothing is known of cuts yet
    metrics = count([True, False, True, False], [False, False, False, True], [False, True, False, False], [2, 3, 9, 4])
    assert (metrics["success"], metrics["successes"], metrics["rollouts_cut"]) == (1 / 4, 1, 2)
    assert (metrics["cuts_checked"], metrics["cuts_wrong"]) == (0, 0)
    assert metrics["cut_steps_saved"] == 2 * 96 - 2 - 9 and metrics["env_steps"] == 18
    # two exempt ones would have been cut, and one succeeded
    metrics = count([True, True, True, False], [True, True, False, False], [True, False, False, False], [2, 3, 9, 4])
    assert (metrics["success"], metrics["successes"]) == ((1 + 0.5) / 4, 1)
    assert (metrics["cuts_checked"], metrics["cuts_wrong"]) == (2, 1)
    # the rate is that of the whole run
    metrics = count([True, True], [False, False], [False, False], [2, 3])
    assert (metrics["success"], metrics["successes"]) == (0.5, 0)
    assert cuts.state_dict() == {"checked": 2, "wrong": 1}


def test_patience_counts_what_has_succeeded_and_not_what_is_estimated(tiny):
    config = tiny("none", plugin("Hopeless"), "rollouts.cut=0.5", "rollouts.cut_exempt=0.001", "steps=3", "patience=2")
    trainer = Trainer(config, silent)
    trainer.env.close()
    trainer.cuts.checked, trainer.cuts.wrong = 2, 1
    rows = rows_of([True, True], [False, False], [False, False], [2, 3])
    metrics = trainer.cuts.count(rollout_metrics(rows, 2), rows)
    assert metrics["success"] == 0.5
    assert [trainer.patience.ends(metrics["successes"]) for _ in range(2)] == [False, True]


def test_a_credit_without_a_value_is_refused_in_one_line(tiny, capsys, tmp_path):
    text = "rollouts.cut=0.05 needs a chance of success, and advantage.name=group has no value"
    with pytest.raises(ConfigError) as refused:
        Trainer(tiny("group", "rollouts.cut=0.05"), silent)
    assert text in str(refused.value) and "\n" not in str(refused.value)
    assert main(["train", "rollouts.cut=0.05", "sft.steps=0", f"run_dir={tmp_path}", "selection.name=none"]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cut": 0.0}, "rollouts.cut must be in"),
        ({"cut": 1.0}, "rollouts.cut must be in"),
        ({"cut": float("nan")}, "rollouts.cut must be in"),
        ({"cut_after": 0}, "rollouts.cut_after must be at least 1"),
        ({"cut_exempt": 0.0}, "rollouts.cut_exempt must be in"),
        ({"cut_exempt": 1.1}, "rollouts.cut_exempt must be in"),
    ],
)
def test_options_are_checked(options, text):
    with pytest.raises(ConfigError, match=text):
        RolloutConfig(**options)
