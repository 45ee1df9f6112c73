"""The command: what it prints, and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcm_rl.cli import main
from pcm_rl.plan.options import SECTIONS
from pcm_rl.plan.run import Request, make_plan

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs" / "openvla_oft_libero_object.yaml")


def test_the_defaults_in_a_table(capsys):
    assert main(["plan", "--cards", "1,64"]) == 0
    out = capsys.readouterr().out
    for text in ("full-valid", "pcm:12", "top-critic:4", "card h200", "more cards than groups=8", "what would help"):
        assert text in out


def test_the_7b_gains_less_than_its_update(capsys):
    """The estimate that was made by hand beforehand: 160 to 190 s with all chunks, 90 to 120 s with ``pcm``."""
    assert main(["plan", "--json", "--cards", "1", "--config", RECIPE, "--card", "h100", "env.num_envs=16"]) == 0
    found = json.loads(capsys.readouterr().out)
    full, pcm = found["steps"][:2]
    assert 160 < full["step_s"] < 190 and 90 < pcm["step_s"] < 120
    assert full["chunks"] == 3280 and pcm["chunks"] == 960 and 1.4 < pcm["gain"] < 1.8
    assert found["workload"]["slots"] == 64 and found["simulators"]["workers"] == 16
    assert found["costs"]["micro_rows"] == 16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["card.peak=3"], "did you mean 'card.peak_tflops'?"),
        (["simulators.x=3"], "unknown key 'simulators.x'"),
        (["simulators.chunk_s=x"], "simulators.chunk_s must be a number, got 'x'"),
        (["simulators.chunk_s=nan"], "simulators.chunk_s must be at least 0"),
        (["simulators.workers=0"], "simulators.workers must be at least 1"),
        (["simulators.workers=1.5"], "simulators.workers must be a whole number"),
        (["simulators.decisions=1.5"], "simulators.decisions must be a whole number"),
        (["simulators.in_step=true", "simulators.decisions=3"], "these environments are in step"),
        (["simulators.spread=2"], "simulators.spread must be in [0, 0.5]"),
        (["episodes.success_rate=1.5"], "episodes.success_rate must be in [0, 1]"),
        (["episodes.mixed=2"], "episodes.mixed must be in [0, 1]"),
        (["card.memory_gb=10"], "weights, training and one chunk need 17.1 GB"),
        (["card.update_share=0"], "card.update_share must be above 0"),
        (["network.micro_rows=0"], "network.micro_rows must be at least 1"),
        (["costs.recomputes=2"], "costs.recomputes must be true or false"),
        (["costs.update_row_s=-1"], "costs.update_row_s must be at least 0"),
        (["foo=1"], "unknown key 'foo'"),
        (["groups=99999999999"], "a plan plays at most"),
        (["--cards", "0"], "each at least 1"),
        (["--methods", "foo"], "unknown method 'foo'"),
        (["--methods", "pcm:0"], "a budget of at least 1"),
        (["--methods", "full-valid:3"], "full-valid has no budget"),
        (["--from", "nowhere"], "nowhere holds no run"),
        (["--from", "nowhere", "--config", RECIPE], "leave --config"),
        (["--from", "nowhere", "--card", "h200"], "so --card h200 says nothing"),
        (["--from", "nowhere", "card.peak_tflops=3"], "so card.peak_tflops says nothing"),
        (["--config", str(ROOT / "configs" / "pick_place.yaml")], "a plan knows the seconds of LIBERO's chunks only"),
        (["--config", str(ROOT / "configs" / "pick_place.yaml"), "simulators.chunk_s=1"], "policy.family=state"),
        (["--config", RECIPE, "policy.openvla.lora.merge=true", "--card", "rtx4090"], "two copies of the weights"),
    ],
)
def test_nonsense_is_refused_in_one_line(arguments, said, capsys):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("pcm-rl: ") and said in error


def test_figures_of_ones_own_count():
    slow = make_plan(Request(cards=[1], overrides=["simulators.chunk_s=1", "groups=4", "episodes.success_rate=0.25"]))
    assert slow.simulators.chunk_s == 1.0 and slow.steps[0].trajectories == 40
    every = make_plan(Request(cards=[1], overrides=["episodes.mixed=1", "groups=4", "episodes.success_rate=0.25"]))
    assert every.steps[0].chunks == 10 * 18 + 30 * 64
    own = make_plan(Request(cards=[1], overrides=["costs.update_row_s=2", "costs.update_call_s=0"]))
    assert own.steps[1].update_s == pytest.approx(960 * 2 + 4 * 0.018)


def test_a_recipe_says_what_it_says():
    merged = make_plan(Request(RECIPE, cards=[1], overrides=["policy.openvla.lora.merge=true"]))
    nf4 = make_plan(Request(RECIPE, cards=[1], overrides=["policy.openvla.quantize=nf4"]))
    always = make_plan(
        Request(RECIPE, cards=[1], overrides=["policy.checkpointing=always", "update.micro_tokens=2760"])
    )
    plain = make_plan(Request(RECIPE, cards=[1]))
    assert merged.costs.decision_s(1) < plain.costs.decision_s(1)
    assert (
        "nf4 costs in time was not measured" in nf4.source and nf4.costs.decision_least_s < plain.costs.decision_least_s
    )
    assert always.costs.recomputes and not plain.costs.recomputes and always.costs.micro_rows == 8
    short = make_plan(Request(RECIPE, cards=[1], overrides=["env.kwargs.horizon=160"]))
    assert short.workload.slots == 20 and short.workload.episodes.failure_chunks == 20


def test_every_figure_can_be_given():
    for name, section in SECTIONS.items():
        for key, value in vars(section()).items():
            text = "null" if value is None else str(value).lower()
            make_plan(Request(cards=[1], overrides=[f"{name}.{key}={text}", "groups=1", "group_size=2"]))
