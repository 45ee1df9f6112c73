"""LeRobot data sets of ours: written, read again bit for bit, and checked as our own files are."""

from __future__ import annotations

import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from pcm_rl.algos.sft import supervise
from pcm_rl.cli import main
from pcm_rl.config import ConfigError, load_config
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE, IMAGE, INSTRUCTION, IS_PAD, STATE
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.processes.messages import set_texts
from pcm_rl.rollouts.demonstrations import demonstrations
from pcm_rl.rollouts.next_actions import next_actions

parquet = pytest.importorskip("pyarrow.parquet")

from pcm_rl.rollouts.lerobot import read_lerobot, write_lerobot  # noqa: E402 - behind the skip

LENGTHS = torch.tensor([5, 1, 7])
SPACE = spaces.Dict(
    {
        "state": spaces.Box(-9, 9, (3,), np.float32),
        "image": spaces.Box(0, 255, (6, 8, 3), np.uint8),
        "wrist_image": spaces.Box(0, 255, (3, 5, 4), np.uint8),
        "joints": spaces.Dict({"angle": spaces.Box(-9, 9, (1,), np.float32)}),
        "closed": spaces.Discrete(2),
    }
)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)


def made(chunk_length=4, instructions=True, seed=0):
    """Rows of three episodes, with every kind of entry."""
    generator = torch.Generator().manual_seed(seed)
    rows = int(LENGTHS.sum())
    chunk, is_pad = next_actions(2 * torch.rand(rows, 2, generator=generator) - 1, LENGTHS, chunk_length)
    demos = TensorDict(
        {
            CHUNK: chunk,
            IS_PAD: is_pad,
            EPISODE: torch.tensor([7, 3, 11]).repeat_interleave(LENGTHS),
            CHUNK_ID: torch.cat([torch.arange(n) for n in LENGTHS.tolist()]),
            STATE: torch.randn(rows, 3, generator=generator),
            IMAGE: torch.randint(256, (rows, 3, 6, 8), generator=generator, dtype=torch.uint8),
            ("observation", "wrist_image"): torch.randint(256, (rows, 3, 5, 4), generator=generator, dtype=torch.uint8),
            ("observation", "joints", "angle"): torch.randn(rows, 1, generator=generator),
            ("observation", "closed"): torch.randint(2, (rows,), generator=generator),
        },
        batch_size=[rows],
    )
    texts = [("pick it", "place it", "pick it")[i] for i in torch.arange(3).repeat_interleave(LENGTHS)]
    return set_texts(demos, {INSTRUCTION: texts}) if instructions else demos


def read(folder, chunk_length=4, **options):
    return read_lerobot(folder, SPACE, ACTIONS, chunk_length=chunk_length, **options)


def same(first, second):
    """Equal entries, types and bits."""
    keys = set(first.keys(True, True))
    assert keys == set(second.keys(True, True))
    assert (INSTRUCTION in first.keys()) == (INSTRUCTION in second.keys())
    if INSTRUCTION in first.keys():
        assert first.get(INSTRUCTION).tolist() == second.get(INSTRUCTION).tolist()
    return all(torch.equal(first[k], second[k]) and first[k].dtype == second[k].dtype for k in keys - {INSTRUCTION})


@pytest.mark.parametrize("instructions", [True, False])
@pytest.mark.parametrize("file_mb", [100, 1e-6], ids=["one file", "a file an episode"])
def test_what_is_written_is_read_again_bit_for_bit(tmp_path, instructions, file_mb):
    demos = made(instructions=instructions)
    write_lerobot(demos, tmp_path / "set", fps=20, settings={}, file_mb=file_mb)
    assert len(list((tmp_path / "set/data").rglob("*.parquet"))) == (1 if file_mb == 100 else 3)
    assert same(read(tmp_path / "set"), demos)


def test_chunks_of_any_length_are_made_of_the_steps(tmp_path):
    write_lerobot(made(4), tmp_path / "set", fps=20, settings={})
    for length in (1, 3, 9):
        assert same(read(tmp_path / "set", length), made(length))


def test_what_the_format_says(tmp_path):
    """By the format's documents: what other programs look for."""
    write_lerobot(made(), tmp_path / "set", fps=12.5)
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 12.5, {"train": "0:3"})
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 13, 2)
    assert info["features"]["observation.images.image"] == {
        "dtype": "image", "shape": [6, 8, 3], "names": ["height", "width", "channels"],
    }  # fmt: skip
    shapes = {name: (feature["dtype"], feature["shape"]) for name, feature in info["features"].items()}
    assert shapes["action"] == ("float32", [2]) and shapes["observation.closed"] == ("int64", [1])
    rows = parquet.read_table(tmp_path / "set/data/chunk-000/file-000.parquet").to_pydict()
    assert rows["index"] == list(range(13)) and rows["task_index"] == [0] * 5 + [1] + [0] * 7
    assert rows["episode_index"] == [0] * 5 + [1] + [2] * 7
    assert rows["timestamp"] == [np.float32(t / 12.5) for n in LENGTHS.tolist() for t in range(n)]
    episodes = parquet.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(e["dataset_from_index"], e["dataset_to_index"], e["tasks"]) for e in episodes] == [
        (0, 5, ["pick it"]), (5, 6, ["place it"]), (6, 13, ["pick it"]),
    ]  # fmt: skip
    tasks = parquet.read_table(tmp_path / "set/meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1], "task": ["pick it", "place it"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_statistics_are_those_of_all_steps_and_of_each_episode(tmp_path):
    demos = made()
    write_lerobot(demos, tmp_path / "set", fps=20)
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    action, pixels = demos[CHUNK][:, 0].double(), demos[IMAGE].double() / 255
    torch.testing.assert_close(torch.tensor(stats["action"]["std"]), action.std(0, correction=0).float())
    torch.testing.assert_close(torch.tensor(stats["action"]["q90"]), action.quantile(0.9, dim=0).float())
    channel = pixels.transpose(0, 1).flatten(1)
    for name, expected in {
        "mean": channel.mean(1), "std": channel.std(1, correction=0), "min": channel.amin(1), "max": channel.amax(1),
        "q10": torch.from_numpy(np.quantile(channel, 0.1, axis=1, method="inverted_cdf")),
    }.items():  # fmt: skip
        torch.testing.assert_close(
            torch.tensor(stats["observation.images.image"][name]), expected.float().view(3, 1, 1)
        )
    assert stats["observation.images.image"]["count"] == [13]
    second = parquet.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()[1]
    assert second["stats/action/mean"] == action[5].tolist() and second["stats/action/count"] == [1]


def test_the_supervised_start_is_the_same(tmp_path):
    path, folder = tmp_path / "demos.safetensors", tmp_path / "set"
    options = ["env.id=pcm_rl/Reach-v0", "demos.episodes=2"]
    assert main(["demos", *options, f"demos.path={path}", "--lerobot", str(folder)]) == 0
    losses = []
    for place in (path, folder):
        demos = demonstrations(load_config(None, [*options, f"demos.path={place}"]), str)
        torch.manual_seed(0)
        policy = StateTokenPolicy(demos[STATE].shape[1], chunk_length=8, action_dim=7)
        losses.append(supervise(policy, demos, steps=3, batch_size=8, generator=torch.Generator().manual_seed(1)))
    assert losses[0] == losses[1]


TWO_TASKS = [
    "env.id=pcm_rl/Reach-v0", "env.tasks.horizon=[128,256]", "env.num_states=20", "env.eval_states=5",
    "demos.episodes=2",
]  # fmt: skip


def test_several_tasks_keep_their_initial_states_and_settings(tmp_path):
    path, folder = tmp_path / "demos.safetensors", tmp_path / "set"
    assert main(["demos", *TWO_TASKS, f"demos.path={path}", "--lerobot", str(folder)]) == 0
    first = demonstrations(load_config(None, [*TWO_TASKS, f"demos.path={path}"]), str)
    again = demonstrations(load_config(None, [*TWO_TASKS, f"demos.path={folder}"]), str)
    assert same(first, again) and int(first[EPISODE].max()) >= 20, "states of both tasks"
    with pytest.raises(ConfigError, match="were recorded with tasks="):
        demonstrations(load_config(None, [*TWO_TASKS, f"demos.path={folder}", "env.tasks.horizon=[64]"]), str)
    with pytest.raises(ConfigError, match="which seed 1 holds out"):
        demonstrations(load_config(None, [*TWO_TASKS, f"demos.path={folder}", "seed=1", "env.eval_states=15"]), str)


def test_the_chunk_length_is_free_and_demonstrations_are_written_without_a_file(tmp_path, capsys):
    options = ["env.id=pcm_rl/Reach-v0", "demos.episodes=1", "env.init_state=option"]
    assert main(["demos", *options, "--lerobot", str(tmp_path / "set"), "--fps", "10"]) == 0
    assert f"LeRobot data set: {tmp_path / 'set'} (1 episodes, " in capsys.readouterr().out
    with pytest.warns(RuntimeWarning, match="has 10 steps a second, and the environment 20"):
        demos = demonstrations(
            load_config(None, [*options, f"demos.path={tmp_path / 'set'}", "env.chunk_length=3"]), str
        )
    assert demos[CHUNK].shape[1:] == (3, 7)


def test_a_data_set_without_settings_is_written_again_without(tmp_path):
    """Of another program's data set initial states are not known, and none are made up."""
    options = ["env.id=pcm_rl/Reach-v0", "demos.episodes=2"]
    assert main(["demos", *options, "--lerobot", str(tmp_path / "ours")]) == 0
    (tmp_path / "ours/meta/pcm_rl.json").unlink()
    lines: list[str] = []
    demos = demonstrations(load_config(None, [*options, f"demos.path={tmp_path / 'ours'}"]), lines.append)
    assert demos[EPISODE].unique_consecutive().tolist() == [-1, -2]
    assert any("does not tell initial states" in line for line in lines)
    assert main(["demos", *options, f"demos.path={tmp_path / 'ours'}", "--lerobot", str(tmp_path / "again")]) == 0
    assert not (tmp_path / "again/meta/pcm_rl.json").exists()
    assert same(demonstrations(load_config(None, [*options, f"demos.path={tmp_path / 'again'}"]), str), demos)


def test_check_reads_it(tmp_path, capsys):
    options = ["env.id=pcm_rl/Reach-v0", "demos.episodes=1", f"run_dir={tmp_path}", "env.num_envs=2", "groups=2"]
    assert main(["demos", *options, "--lerobot", str(tmp_path / "set")]) == 0
    main(["check", *options, f"demos.path={tmp_path / 'set'}"])
    assert f"those of {tmp_path / 'set'}" in capsys.readouterr().out


def test_statistics_of_a_lerobot_data_set(tmp_path):
    options = ["env.id=pcm_rl/Reach-v0", "demos.episodes=1"]
    assert main(["demos", *options, "--lerobot", str(tmp_path / "set")]) == 0
    statistics = ["--statistics", str(tmp_path / "a.json")]
    assert main(["demos", *options, f"demos.path={tmp_path / 'set'}", *statistics]) == 0
    ours = json.loads((tmp_path / "a.json").read_text())
    theirs = json.loads((tmp_path / "set/meta/stats.json").read_text())["action"]
    assert ours["actions_mean"] == pytest.approx(theirs["mean"]) and ours["actions_std"] == pytest.approx(theirs["std"])


class Still(gym.Env):
    """Does not tell its steps a second."""

    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (7,), np.float32)


gym.register("test/LerobotStill-v0", Still)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["env.id=pcm_rl/Reach-v0", "--fps", "4"], "demos.path says where"),
        (["env.id=pcm_rl/Reach-v0", "demos.path=x.safetensors", "--fps", "4"], "give --lerobot FOLDER"),
        (["env.id=pcm_rl/Reach-v0", "--lerobot", "{tmp}/new", "--fps", "-1"], "--fps must be a number above 0"),
        (["env.id=pcm_rl/Reach-v0", "--lerobot", "{tmp}"], "exists; give a new folder"),
        (
            ["env.id=pcm_rl/Reach-v0", "demos.path={tmp}/new", "--lerobot", "{tmp}/new"],
            "demos.path and --lerobot are both",
        ),
        (["env.id=test/LerobotStill-v0", "--lerobot", "{tmp}/new"], "does not tell its steps a second"),
        (
            ["env.id=pcm_rl/Reach-v0", "demos.path={tmp}", "--statistics", "a.json"],
            "is a folder without meta/info.json",
        ),
        (
            ["env.id=pcm_rl/Reach-v0", "demos.path={tmp}/demos.safetensors", "demos.features={image: x}"],
            "names features of a LeRobot data set",
        ),
    ],
)
def test_wrong_use_is_one_line_before_anything_is_played(tmp_path, capsys, arguments, text):
    (tmp_path / "file").touch()
    assert main(["demos", *(part.replace("{tmp}", str(tmp_path)) for part in arguments)]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_what_the_format_has_no_place_for_is_refused(tmp_path):
    demos = made()
    for key, values, text in [
        (("observation", "depth"), torch.zeros(13, 4, 4), r"depth is \[4, 4\] torch.float32"),
        (("observation", "a/b"), torch.zeros(13, 4), "no names with a /"),
        (CHUNK, demos[CHUNK] + demos[IS_PAD].unsqueeze(-1), "expected whole episodes"),
        (EPISODE, torch.arange(13), "expected whole episodes"),
    ]:
        with pytest.raises(ConfigError, match=text):
            write_lerobot(demos.clone().set(key, values), tmp_path / "set", fps=20)
    for rows, text in [(demos[1:], "begin with the first step"), (demos[:0], "or none"), (demos[:4], "whole episodes")]:
        with pytest.raises(ConfigError, match=text):
            write_lerobot(rows, tmp_path / "set", fps=20)
    with pytest.raises(ConfigError, match="above 0; got inf"):
        write_lerobot(demos, tmp_path / "set", fps=float("inf"))
    assert not (tmp_path / "set").exists(), "nothing is left behind"


def test_a_data_set_that_was_changed_is_not_taken_for_ours(tmp_path):
    write_lerobot(made(), tmp_path / "set", fps=20, settings={})
    write_lerobot(made()[:6], tmp_path / "part", fps=20)
    shutil.copy(tmp_path / "set/meta/pcm_rl.json", tmp_path / "part/meta/pcm_rl.json")
    with pytest.raises(ConfigError, match="it was changed afterwards; delete the file"):
        read(tmp_path / "part")
    (tmp_path / "part/meta/pcm_rl.json").write_text('{"settings": {}}')
    with pytest.raises(ConfigError, match=r"is damaged: .*; delete it"):
        read(tmp_path / "part")
    (tmp_path / "part/meta/pcm_rl.json").unlink()
    assert read(tmp_path / "part")[EPISODE].unique_consecutive().tolist() == [-1, -2]


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert main(["demos", "env.id=pcm_rl/Reach-v0", "--lerobot", str(tmp_path / "set")]) == 2
    assert 'run: pip install "pcm_rl[lerobot]"' in capsys.readouterr().err
