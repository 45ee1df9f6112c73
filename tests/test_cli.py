from __future__ import annotations

import csv
import errno
import json
import shlex
import signal
import sysconfig
from pathlib import Path

import pytest
import torch

from pcm_rl import cli
from pcm_rl.cli import main
from pcm_rl.cli.arguments import parse
from pcm_rl.cli.ending import explain
from pcm_rl.config import ConfigError
from pcm_rl.training.signals import Interrupted

TINY = [
    "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=96", "env.max_chunks=12", "env.num_envs=12", "env.eval_states=8",
    "groups=2", "group_size=6", "eval_episodes=8", "eval_every=0", "steps=1", "logger=none", "record=false",
    "demos.episodes=20", "sft.steps=300", "selection.budget=4", "policy.state.width=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    assert main(["sft", *TINY, f"run_dir={folder}", "name=start"]) == 0
    start = f"policy.init={folder / 'start' / 'policy.safetensors'}"
    assert main(["train", *TINY, f"run_dir={folder}", "name=run", start]) == 0
    return folder, start


def test_train_eval_plot_resume(run, capsys):
    folder, _ = run
    path = str(folder / "run")
    assert main(["eval", path]) == 0
    result = json.loads((folder / "run" / "eval.json").read_text())
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert result["columns"][0]["success"] == summary["after"]  # the same result twice
    assert [state for state, _, _ in result["columns"][0]["tasks"][0]["episodes"]] == list(range(8))
    (folder / "run" / "report.html").unlink()
    assert main(["plot", path]) == 0 and (folder / "run" / "report.html").is_file()
    assert main(["train", "--resume", path, "steps=2"]) == 0
    assert "step    2/2" in capsys.readouterr().out
    assert main(["plan", "--from", path, "--cards", "1,2", "groups=4"]) == 0
    out = capsys.readouterr().out
    assert "seconds measured in 2 steps" in out and "24 rollouts a step instead of 12 make this rough" in out


def test_eval_options(run, capsys):
    folder, _ = run
    path = folder / "run" / "eval.json"
    also = ["--also", "short:env.kwargs.horizon=8,env.tasks={stop_on_success: [true]}", "--also", "b:env.num_envs=3"]
    assert main(["eval", str(folder / "run"), "--overwrite", "--greedy", "--episodes", "2", *also]) == 0
    result = json.loads(path.read_text())
    assert result["actions"] == "greedy"
    assert [column["name"] for column in result["columns"]] == ["run", "short", "b"]
    short = result["columns"][1]
    assert short["overrides"] == ["env.kwargs.horizon=8", "env.tasks={stop_on_success: [true]}"]
    assert short["tasks"][0]["episodes"] == [[0, False, 8], [1, False, 8]]
    assert "0.0% [0.0%, 65.8%] (0/2)" in capsys.readouterr().out
    assert main(["eval", str(folder / "run"), "--also", "b:seed=0", "--also", "b:seed=0"]) == 2
    assert main(["eval", str(folder / "run"), "--states", "all"]) == 2
    assert capsys.readouterr().err.count("pcm-rl: ") == 2
    for refused in ("short", "sh ort:seed=1", "..:seed=1", "short:seed"):
        with pytest.raises(SystemExit):
            main(["eval", str(folder / "run"), "--also", refused])
        assert "expected NAME:key=value" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_writes_one_row_a_run_and_goes_on_where_it_was(run, capsys, monkeypatch):
    folder, start = run
    command = ["compare", "--methods=", "--variant", "lr-1e-3.pcm:method=pcm,update.lr=1e-3", "--budgets=3"]
    command += ["--seeds=0-0", "--jobs=2", *TINY, f"run_dir={folder}", start]
    assert main(command) == 0
    with (folder / "compare" / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["budget"], row["seed"]) for row in rows] == [("lr-1e-3.pcm", "3", "0")]
    out = capsys.readouterr().out
    assert f"-> {float(rows[0]['after']):.1%}" in out and "1 to do, 2 at a time" in out
    monkeypatch.setattr("pcm_rl.compare.jobs.subprocess.Popen", None)  # nothing is started again
    assert main(command) == 0
    assert "1 finished, 0 to do" in capsys.readouterr().out
    assert main([*command, "update.lr=2e-3"]) == 0  # the variant has its own
    assert main([*command, "update.epochs=2"]) == 2
    assert "was made with update.epochs=1, now update.epochs=2" in capsys.readouterr().err


def test_interrupted_and_failed_comparisons_end_with_a_line(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pcm_rl.compare.run.run_jobs", interrupt)
    command = ["compare", f"run_dir={tmp_path}"]
    assert main(command) == 130
    captured = capsys.readouterr()
    assert "interrupted: 0 of 3 runs are finished" in captured.out
    assert captured.err == f"pcm-rl: interrupted; continue with `pcm-rl compare run_dir={tmp_path}`\n"
    for more, text in (
        (["--variant", "a:update.lrs=1"], "unknown key 'update.lrs'"),
        (["--variant", "a:method=best"], "unknown method 'best'"),
        (["--variant", "a:steps=1", "--variant", "a:steps=2"], "two --variant have one name"),
        (["--baseline", "best"], "the baseline 'best' is not compared"),
    ):
        assert main([*command, *more]) == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", [0]), ("0,2", [0, 2]), ("0-3,7", [0, 1, 2, 3, 7]), ("3-2", None), ("1,", None)]
)
def test_seeds_are_numbers_and_ranges(text, numbers, capsys):
    if numbers is not None:
        assert parse(["compare", f"--seeds={text}"]).seeds == numbers
        return
    with pytest.raises(SystemExit):
        parse(["compare", f"--seeds={text}"])
    assert "expected numbers such as 0,1,2 or 0-15" in capsys.readouterr().err


def test_profile_prints_every_method(run, capsys):
    folder, start = run
    assert main(["profile", *TINY, f"run_dir={folder}", "name=profile", start, "groups=6"]) == 0
    out = capsys.readouterr().out
    for method in ("pcm", "full-valid", "full-padded", "random-valid", "top-phase"):
        assert method in out


def test_demos_are_not_overwritten(tmp_path, capsys):
    path = tmp_path / "demos.safetensors"
    command = ["demos", "env.id=pcm_rl/Reach-v0", "demos.episodes=2", f"demos.path={path}"]
    assert main(command) == 0 and path.is_file()
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["train", "selection.buget=3"], "did you mean 'selection.budget'"),
        (["train", "--config", "no.yaml"], "no configuration file"),
        (["train", "--resume", "no-run"], "holds no run"),
        (["train", "--resume", ""], "got an empty name"),
        (["train", "--resume", "run", "--config", "recipe.yaml"], "leave --config recipe.yaml out"),
        (["train", "env.id=pcm_rl/Nothing-v0"], "env.id=pcm_rl/Nothing-v0"),
        (["eval", "no-run"], "holds no run"),
        (["plot", "no-run"], "no-run"),
        (["demos"], "demos.path"),
        (["train", "policy.init=no.safetensors"], "no policy file"),
    ],
)
def test_errors_of_use_are_one_line(command, text, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("pcm-rl: ") and "Traceback" not in error


def ends_with(error, monkeypatch, arguments, checkpoint=None):
    """Exit status of ``pcm-rl train`` where training ends with an error, after a checkpoint was written or before."""

    def train(config, resume):
        if checkpoint is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
        raise error

    monkeypatch.setattr("pcm_rl.training.trainer.train", train)
    return main(["train", *arguments])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_its_status_and_the_exact_command(number, tmp_path, capsys, monkeypatch):
    stop, run = Interrupted(number), tmp_path / "a run"
    start = [f"run_dir={tmp_path}", "name=a run"]
    assert ends_with(stop, monkeypatch, start) == 128 + number
    assert capsys.readouterr().err == f"pcm-rl: {number.name}; start again with `pcm-rl train {shlex.join(start)}`\n"
    stop.saved = 12
    assert ends_with(stop, monkeypatch, start, run / "checkpoint") == 128 + number
    go_on = f"pcm-rl: {number.name}, saved after step 12; continue with `pcm-rl train --resume '{run}'"
    assert capsys.readouterr().err == f"{go_on}`\n"
    (run / "config.yaml").write_text("seed: 0")
    assert ends_with(stop, monkeypatch, ["--resume", str(run), "steps=9"]) == 128 + number
    assert capsys.readouterr().err == f"{go_on} steps=9`\n"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert ends_with(stop, monkeypatch, start) == 128 + number
    assert "continue with `torchrun --nproc-per-node 2 -m pcm_rl.cli train --resume" in capsys.readouterr().err


def test_what_the_user_can_mend_is_one_line(tmp_path, capsys, monkeypatch):
    arguments, checkpoint = [f"run_dir={tmp_path}", "name=run"], tmp_path / "run" / "checkpoint"
    full = OSError(errno.ENOSPC, "No space left on device", "metrics.csv")
    for error, text in (
        (full, f"'metrics.csv'; when this is mended, continue with `pcm-rl train --resume {tmp_path}/run`"),
        (FloatingPointError("a nan"), "a nan; when this is mended, continue with"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory; when this is mended"),
        (ConfigError("a key"), "a key\n"),
    ):
        assert ends_with(error, monkeypatch, arguments, checkpoint) == 2
        printed = capsys.readouterr().err
        assert text in printed and printed.count("\n") == 1 and "Traceback" not in printed


@pytest.mark.parametrize(
    ("where", "status", "text"),
    [
        ("{package}/rules.py", 1, "KeyError, a bug of pcm_rl: please report it, with the lines above"),
        ("{stdlib}/json/decoder.py", 1, "please report it"),
        ("{site}/site-packages/torch/nn.py", 1, "please report it"),
        ("/home/me/rule.py", 2, "KeyError in /home/me/rule.py, line 3, which is not part of pcm_rl"),
    ],
)
def test_a_bug_of_ours_is_told_from_one_of_the_users_own_code(where, status, text, capsys, monkeypatch):
    places = {
        "package": Path(cli.__file__).parents[1], "stdlib": sysconfig.get_path("stdlib"), "site": "/opt/lib/python3"
    }  # fmt: skip
    lines = [f'  File "{place.format(**places)}", line 3, in f\n' for place in ("{package}/cli/commands.py", where)]
    monkeypatch.setattr("pcm_rl.cli.ending.traceback.format_exception", lambda error: ["Traceback\n", *lines])
    assert explain(KeyError("x")) == status
    printed = capsys.readouterr().err
    assert text in printed and printed.startswith("Traceback")


def test_a_supervised_start_replaces_no_run(run, capsys):
    folder, _ = run
    before = {path: path.read_bytes() for path in folder.glob("*/config.yaml")}
    for name in ("start", "run"):
        assert main(["sft", *TINY, f"run_dir={folder}", f"name={name}"]) == 2
        assert "holds a run or a policy; give another name=" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.glob("*/config.yaml")}


def test_unknown_method_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--methods=best"])
    assert "full-padded" in capsys.readouterr().err


def test_a_policy_of_another_split_is_refused(tmp_path, capsys):
    split = ["env.num_states=40", "env.eval_states=10", "sft.steps=1", "demos.episodes=2", f"run_dir={tmp_path}"]
    assert main(["sft", *TINY, *split, "name=start"]) == 0
    start = f"policy.init={tmp_path / 'start' / 'policy.safetensors'}"
    assert main(["train", *TINY, *split, "name=other", "seed=1", start]) == 2
    assert "seed 1 holds out" in capsys.readouterr().err


@pytest.mark.parametrize("finite", [True, False])
def test_a_run_is_not_evaluated_or_resumed_on_states_it_trained_on(tmp_path, capsys, finite):
    split = ["env.num_states=40"] if finite else []
    path = str(tmp_path / "run")
    assert main(["train", *TINY, *split, "sft.steps=0", f"run_dir={tmp_path}", "name=run"]) == 0
    assert main(["eval", path]) == 0
    assert main(["eval", path, "env.eval_states=20"]) == 2
    assert main(["train", "--resume", path, "steps=2", "env.eval_states=20"]) == 2
    assert capsys.readouterr().err.count("holds out for evaluation with eval_states=20") == 2


def test_overrides_may_follow_options():
    options = parse(["eval", "RUN", "seed=1", "--greedy", "device=cpu", "--episodes", "3"])
    assert options.overrides == ["seed=1", "device=cpu"] and options.greedy and options.episodes == 3
    for wrong in (["eval", "RUN", "--gredy"], ["eval", "RUN", "--greedy", "more"], ["plot", "RUN", "--x", "a=b"]):
        with pytest.raises(SystemExit):
            parse(wrong)
