"""LeRobot data sets of other programs, made by hand: versions, films, names, and everything that is refused."""

from __future__ import annotations

import io
import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from pcm_rl.cli import main
from pcm_rl.config import ConfigError, load_config
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE, IMAGE, INSTRUCTION, IS_PAD, STATE
from pcm_rl.rollouts.demonstrations import demonstrations
from pcm_rl.training.run_folder import check_expert

pa = pytest.importorskip("pyarrow")
ffmpeg = pytest.importorskip("imageio_ffmpeg")
import pyarrow.parquet as parquet  # noqa: E402 - behind the skip

from pcm_rl.rollouts.lerobot import read, read_lerobot  # noqa: E402

LENGTHS, FPS, SIZE = (4, 3, 5), 10, (16, 24)  # height and width
TASKS = ("open the drawer", "close the drawer")
TASK_OF = (0, 1, 0)
FILES = ((0, 0), (0, 1), (2, 5))  # chunk and file of each episode, in version 3.0
SPACE = spaces.Dict(
    {
        "state": spaces.Box(-9, 9, (2,), np.float32),
        "image": spaces.Box(0, 255, (*SIZE, 3), np.uint8),
        "wrist_image": spaces.Box(0, 255, (*SIZE, 3), np.uint8),
    }
)
ACTIONS = spaces.Box(-1, 1, (3,), np.float32)
GREY = 17  # between the frames of a film


def cells(episode):
    """The columns of an episode: every number tells its episode and step."""
    steps, first = np.arange(LENGTHS[episode]), sum(LENGTHS[:episode])
    return {
        "observation.state": pa.array([[episode, step] for step in steps.tolist()], pa.list_(pa.float64())),
        "action": pa.array([[0.1 * episode, 0.1 * step, -1.0] for step in steps.tolist()], pa.list_(pa.float32(), 3)),
        "observation.images.top": pa.array([{"bytes": png(10 * episode + s), "path": "x.png"} for s in steps.tolist()]),
        "next.reward": pa.array(steps.astype(np.float32)),
        "timestamp": pa.array((steps / FPS).astype(np.float32)),
        "frame_index": pa.array(steps),
        "episode_index": pa.array(np.full(len(steps), episode)),
        "index": pa.array(first + steps),
        "task_index": pa.array(np.full(len(steps), TASK_OF[episode])),
    }


def png(grey, size=SIZE):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


def film(path, greys, fps=FPS, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ffmpeg.write_frames(path, size[::-1], fps=fps, macro_block_size=2, ffmpeg_log_level="error")
    writer.send(None)
    for grey in greys:
        writer.send(np.full((*size, 3), grey, np.uint8))
    writer.close()


def greys(episode):
    return [GREY * (episode + step) for step in range(LENGTHS[episode])]


def info(version, **changes):
    number = {"shape": [1], "names": None}
    camera = {"shape": [*SIZE, 3], "names": ["height", "width", "channel"]}
    old = version.startswith("v2")
    data = (
        "chunk-{episode_chunk:03d}/episode_{episode_index:06d}"
        if old
        else "chunk-{chunk_index:03d}/file-{file_index:03d}"
    )
    return {
        "codebase_version": version, "robot_type": "panda", "fps": FPS, "chunks_size": 2 if old else 1000,
        "total_episodes": 3, "total_frames": 12, "total_tasks": 2, "splits": {"train": "0:3"},
        "data_path": f"data/{data}.parquet",
        "video_path": f"videos/{data.replace('/', '/{video_key}/')}.mp4" if old else f"videos/{{video_key}}/{data}.mp4",
        "features": {
            "observation.state": {"dtype": "float64", "shape": [2], "names": ["x", "y"]},
            "action": {"dtype": "float32", "shape": [3], "names": None},
            "observation.images.top": {"dtype": "image", **camera},
            "observation.images.wrist_image": {"dtype": "video", **camera},
            "next.reward": {"dtype": "float32", **number},
            **{name: {"dtype": "int64", **number} for name in ("frame_index", "episode_index", "index", "task_index")},
            "timestamp": {"dtype": "float32", **number},
        },
        **changes,
    }  # fmt: skip


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(table, dict):
        parquet.write_table(pa.table(table), path)
    else:
        path.write_text(table, encoding="utf-8")


def three(folder):
    """Version 3.0, three files of rows; two episodes in one film, and one in another."""
    write(folder / "meta/info.json", json.dumps(info("v3.0")))
    write(folder / "meta/tasks.parquet", {"task_index": [1, 0], "__index_level_0__": [TASKS[1], TASKS[0]]})
    for episode, (chunk, file) in enumerate(FILES):
        write(folder / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet", cells(episode))
    wrist = "videos/observation.images.wrist_image"
    records = {
        "episode_index": [0, 1, 2], "length": list(LENGTHS), "tasks": [[TASKS[i]] for i in TASK_OF],
        "data/chunk_index": [chunk for chunk, _ in FILES], "data/file_index": [file for _, file in FILES],
        f"{wrist}/chunk_index": [0, 0, 0], f"{wrist}/file_index": [0, 0, 1],
        f"{wrist}/from_timestamp": [0.0, LENGTHS[0] / FPS, 0.0],
    }  # fmt: skip
    for file, rows in ((0, slice(0, 2)), (1, slice(2, 3))):
        write(folder / f"meta/episodes/chunk-000/file-{file:03d}.parquet", {k: v[rows] for k, v in records.items()})
    film(folder / wrist / "chunk-000/file-000.mp4", greys(0) + greys(1))
    film(folder / wrist / "chunk-000/file-001.mp4", [*greys(2), 255])  # longer than its episode


def two(folder, version="v2.1"):
    """Version 2.1: a file and a film an episode, two episodes a folder."""
    write(folder / "meta/info.json", json.dumps(info(version)))
    write(
        folder / "meta/tasks.jsonl",
        "".join(json.dumps({"task_index": i, "task": t}) + "\n" for i, t in enumerate(TASKS)),
    )
    lines = [{"episode_index": i, "tasks": [TASKS[TASK_OF[i]]], "length": n} for i, n in enumerate(LENGTHS)]
    write(folder / "meta/episodes.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for episode in range(3):
        write(folder / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet", cells(episode))
        place = f"chunk-{episode // 2:03d}/observation.images.wrist_image/episode_{episode:06d}.mp4"
        film(folder / "videos" / place, greys(episode))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot")
    for name, make in (("v3.0", three), ("v2.1", two)):
        make(folder / name)
    shutil.copytree(folder / "v2.1", folder / "v2.0")
    write(folder / "v2.0/meta/info.json", json.dumps(info("v2.0")))
    return folder


@pytest.mark.parametrize("version", ["v3.0", "v2.1", "v2.0"])
def test_every_version_gives_the_same_rows(made, version):
    rows = read_lerobot(made / version, SPACE, ACTIONS, chunk_length=2)
    places = [(episode, step) for episode in range(3) for step in range(LENGTHS[episode])]
    assert rows[EPISODE].tolist() == [-1 - episode for episode, _ in places]
    assert rows[CHUNK_ID].tolist() == [step for _, step in places]
    assert rows[STATE].dtype == torch.float32 and rows[STATE].tolist() == [list(map(float, place)) for place in places]
    assert rows.get(INSTRUCTION).tolist() == [TASKS[TASK_OF[episode]] for episode, _ in places]
    assert rows[IS_PAD].tolist() == [[False, step == LENGTHS[episode] - 1] for episode, step in places]
    following = [(e, min(s + 1, LENGTHS[e] - 1)) for e, s in places]
    expected = torch.tensor(
        [[[0.1 * e, 0.1 * s, -1.0] for e, s in pair] for pair in zip(places, following, strict=True)]
    )
    assert torch.equal(rows[CHUNK], expected)
    assert rows[IMAGE].flatten(1).float().mean(1).tolist() == [10 * e + s for e, s in places], "the single other camera"
    wrist = rows["observation", "wrist_image"].float()
    wanted = torch.tensor([GREY * (e + s) for e, s in places]).view(-1, 1, 1, 1)
    assert wrist.shape == (12, 3, *SIZE) and (wrist - wanted).abs().max() <= 3, "films are not exact"


def test_features_of_other_names_are_named(made):
    space = spaces.Dict({"proprio": SPACE["state"], "front": SPACE["image"]})  # a proprio is the state
    with pytest.raises(
        ConfigError, match=r"has no feature for front; it has .*observation.images.top.*demos.features="
    ):
        read_lerobot(made / "v3.0", space, ACTIONS)  # two cameras: none is guessed
    rows = read_lerobot(made / "v3.0", space, ACTIONS, names={"front": "observation.images.top"})
    assert int(rows["observation", "front"][5].max()) == 11
    vector = spaces.Box(-1, 1, (2,), np.float32)
    assert STATE in read_lerobot(made / "v3.0", vector, ACTIONS).keys(True), "other features are left out"
    turned = read_lerobot(
        made / "v3.0",
        vector,
        spaces.Box(-9, 9, (2,)),
        names={"action": "observation.state", "state": "observation.state"},
    )
    assert torch.equal(turned[CHUNK][:, 0], turned[STATE])


def test_a_data_set_of_one_number_has_no_lists(tmp_path):
    three(tmp_path)
    features = info("v3.0")["features"]
    features["observation.state"]["shape"] = features["action"]["shape"] = [1]
    write(tmp_path / "meta/info.json", json.dumps(info("v3.0", features=features)))
    for episode, (chunk, file) in enumerate(FILES):
        found = cells(episode)
        found["observation.state"] = found["action"] = found["next.reward"]
        write(tmp_path / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet", found)
    rows = read_lerobot(tmp_path, spaces.Box(-1, 9, (1,)), spaces.Box(0, 9, (1,)))
    assert rows[STATE].flatten().tolist() == rows[CHUNK][:, 0, 0].tolist() == [s for n in LENGTHS for s in range(n)]


def rewrite(folder, **changes):
    """Change columns of the second episode's rows."""
    write(folder / "data/chunk-000/file-001.parquet", {**cells(1), **changes})


def with_info(folder, **changes):
    write(folder / "meta/info.json", json.dumps(info("v3.0", **changes)))


def with_feature(folder, name, **changes):
    features = info("v3.0")["features"]
    features[name] |= changes
    with_info(folder, features=features)


def with_starts(folder, first, second):
    """Other times at which the two episodes of a film begin."""
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    columns = parquet.read_table(path).to_pydict()
    write(path, columns | {"videos/observation.images.wrist_image/from_timestamp": [first, second]})


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


FILM = "videos/observation.images.wrist_image/chunk-000/file-000.mp4"
BROKEN = {
    "version": (
        lambda f: with_info(f, codebase_version="v1.6"),
        "has codebase_version v1.6; expected one of v2.0, v2.1",
    ),
    "no version": (lambda f: write(f / "meta/info.json", "[]"), "has codebase_version None"),
    "no JSON": (lambda f: write(f / "meta/info.json", "{"), "info.json of a LeRobot data set is damaged"),
    "no fps": (lambda f: with_info(f, fps=0), "damaged: ValueError.*fps=0 and chunks_size=1000"),
    "no features": (lambda f: with_info(f, features=None), "info.json of a LeRobot data set is damaged"),
    "bad pattern": (
        lambda f: with_info(f, data_path="data/{nothing}"),
        "has a path 'data/{nothing}' that cannot be filled in",
    ),
    "outside": (lambda f: with_info(f, data_path="../x"), "expected one inside of the data set"),
    "fewer episodes": (lambda f: with_info(f, total_episodes=4), "lists 3 episodes, and meta/info.json says 4"),
    "fewer steps": (lambda f: with_info(f, total_frames=13), "have 12 steps, and meta/info.json says 13"),
    "no episodes": (lambda f: shutil.rmtree(f / "meta/episodes"), "lists 0 episodes"),
    "no tasks": (lambda f: (f / "meta/tasks.parquet").unlink(), "lacks .*tasks.parquet; download it again"),
    "odd tasks": (lambda f: write(f / "meta/tasks.parquet", {"task_index": [0]}), r"has the columns \['task_index'\]"),
    "unknown task": (lambda f: rewrite(f, task_index=pa.array([7, 7, 7])), "has steps of task 7"),
    "no rows": (lambda f: (f / "data/chunk-000/file-001.parquet").unlink(), "lacks .*file-001.parquet"),
    "cut rows": (
        lambda f: cut(f / "data/chunk-000/file-001.parquet"),
        "file-001.parquet of a LeRobot data set is damaged",
    ),
    "no column": (
        lambda f: write(f / "data/chunk-000/file-001.parquet", {k: v for k, v in cells(1).items() if k != "action"}),
        "file-001.parquet has no column action; it has observation.state",
    ),
    "gap": (
        lambda f: write(f / "data/chunk-000/file-001.parquet", {k: v.take([0, 2]) for k, v in cells(1).items()}),
        "has step 1 of episode 1 0 times; expected every step once",
    ),
    "twice": (
        lambda f: rewrite(f, frame_index=pa.array([0, 1, 1]), timestamp=pa.array([0, 0.1, 0.1])),
        "step 1 .* 2 times",
    ),
    "unlisted": (
        lambda f: rewrite(f, episode_index=pa.array([1, 1, 9])),
        "has step 2 of episode 9, which the metadata",
    ),
    "too long": (lambda f: rewrite(f, frame_index=pa.array([0, 1, 3])), "has step 3 of episode 1, which the metadata"),
    "late": (
        lambda f: rewrite(f, timestamp=pa.array([0, 0.1, 0.4])),
        "has step 2 of episode 1 at 0.4 s, and at 10 steps",
    ),
    "nan": (
        lambda f: rewrite(f, action=pa.array([[0.0] * 3, [0.0, float("nan"), 0.0], [0.0] * 3])),
        "1 of 12 steps .* have no finite action, the first at step 1 of episode 1",
    ),
    "empty cell": (
        lambda f: rewrite(f, action=pa.array([[0.0] * 3, None, [0.0] * 3])),
        "cells of action that are empty",
    ),
    "empty number": (
        lambda f: rewrite(f, action=pa.array([[0.0] * 3, [0.0, None, 0.0], [0.0] * 3])),
        "has 8 numbers of action in 3 rows",
    ),
    "ragged": (lambda f: rewrite(f, action=pa.array([[0.0] * 3, [0.0] * 2, [0.0] * 4])), "or of several lengths"),
    "narrow": (
        lambda f: rewrite(f, action=pa.array([[0.0] * 2] * 3)),
        r"has 6 numbers of action in 3 rows; expected \[3\]",
    ),
    "texts": (lambda f: rewrite(f, action=pa.array([["a"] * 3] * 3)), "as action; expected numbers"),
    "half a task": (lambda f: rewrite(f, task_index=pa.array([0.5, 0, 0])), "numbers of task_index that are no int64"),
    "action width": (
        lambda f: with_feature(f, "action", shape=[7]),
        r"action of the LeRobot data set at .* is float32 \[7\], and the env",
    ),
    "action type": (
        lambda f: with_feature(f, "action", dtype="int64"),
        r"is int64 \[3\], and the environment takes Box",
    ),
    "action range": (
        lambda f: rewrite(f, action=pa.array([[0.0, 0.0, 5.0]] * 3)),
        "reaches from -1 to 5 in dimension 2, and the environment takes -1 to 1: rescale",
    ),
    "state width": (
        lambda f: with_feature(f, "observation.state", shape=[8]),
        r"observation.state .* is float64 \[8\]; the environment's state has shape \[2\], float32",
    ),
    "state type": (
        lambda f: with_feature(f, "observation.state", dtype="string"),
        r"is string \[2\]; the environment's",
    ),
    "image size": (
        lambda f: with_feature(f, "observation.images.top", shape=[480, 640, 3]),
        r"is image \[480, 640, 3\]; the environment's image has height, width and 3 channels \[16, 24, 3\], uint8",
    ),
    "picture size": (
        lambda f: rewrite(f, **{"observation.images.top": pa.array([{"bytes": png(1, (8, 8))}] * 3)}),
        r"top at step 0 of episode 1 is \[8, 8\], height and width; expected \[16, 24\]",
    ),
    "no picture": (
        lambda f: rewrite(f, **{"observation.images.top": pa.array([{"bytes": None, "path": "x.png"}] * 3)}),
        "observation.images.top at step 0 of episode 1 has no picture in it",
    ),
    "cut picture": (
        lambda f: rewrite(f, **{"observation.images.top": pa.array([{"bytes": png(1)[:60]}] * 3)}),
        "observation.images.top at step 0 of episode 1 is damaged",
    ),
    "same frames": (lambda f: with_starts(f, 0.0, 0.3), "two episodes have the same frames of the film"),
    "before a film": (lambda f: with_starts(f, -0.1, 0.4), "episode 0 begins at -0.1 s of the film .*; expected 0 or"),
    "no start": (lambda f: with_starts(f, float("nan"), 0.4), "episode 0 begins at nan s of the film"),
    "no film": (lambda f: (f / FILM).unlink(), "lacks .*file-000.mp4; download it again, with its videos"),
    "cut film": (lambda f: (f / FILM).write_bytes((f / FILM).read_bytes()[:300]), "the film .*file-000.mp4 is damaged"),
    "short film": (lambda f: film(f / FILM, greys(0)), "file-000.mp4 has 4 frames; expected 7 at least"),
    "slow film": (lambda f: film(f / FILM, greys(0) + greys(1), fps=5), "has 5 frames a second; .* says 10"),
    "small film": (
        lambda f: film(f / FILM, [1] * 7, size=(16, 16)),
        r"is \[16, 16\], width and height; expected \[24, 16\]",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_refused_in_one_line(made, tmp_path, name):
    change, text = BROKEN[name]
    shutil.copytree(made / "v3.0", tmp_path / "set")
    change(tmp_path / "set")
    with pytest.raises(ConfigError, match=text) as error:
        read_lerobot(tmp_path / "set", SPACE, ACTIONS)
    assert "\n" not in str(error.value)


def test_lines_of_older_versions_are_refused_too(made, tmp_path):
    shutil.copytree(made / "v2.1", tmp_path / "set")
    write(tmp_path / "set/meta/episodes.jsonl", '{"episode_index": 0}\n')
    with pytest.raises(ConfigError, match="a line with length None, expected int"):
        read_lerobot(tmp_path / "set", SPACE, ACTIONS)
    write(tmp_path / "set/meta/episodes.jsonl", "{\n")
    with pytest.raises(ConfigError, match=r"episodes.jsonl of a LeRobot data set is damaged"):
        read_lerobot(tmp_path / "set", SPACE, ACTIONS)


def test_more_than_the_memory_is_refused_before_it_is_read(made, monkeypatch):
    monkeypatch.setattr(read, "free_memory", lambda: 2000)
    with pytest.raises(ConfigError, match=r"12 steps .* need 0.0 GiB of memory, and 0.0 GiB are free; take a part"):
        read_lerobot(made / "v3.0", SPACE, ACTIONS)


def test_a_run_takes_names_and_tells_what_is_not_known(made):
    """The environment of the configuration decides; initial states of others are not known."""
    options = ["env.id=pcm_rl/Reach-v0", f"demos.path={made / 'v3.0'}"]
    with pytest.raises(ConfigError, match=r"observation.state .* the environment's state has shape \[26\]"):
        demonstrations(load_config(None, options), str)
    with pytest.raises(ConfigError, match=r"demos.features names wrist; the environment has state, action"):
        demonstrations(load_config(None, [*options, "demos.features={wrist: observation.images.top}"]), str)
    with pytest.raises(ConfigError, match=r"has no observation.images.left; it has"):
        demonstrations(load_config(None, [*options, "demos.features={state: observation.images.left}"]), str)


class Drawer(gym.Env):
    """Somebody's environment, without an expert: two numbers, and a camera."""

    observation_space = spaces.Dict({"state": SPACE["state"], "image": SPACE["image"]})
    action_space = ACTIONS
    metadata = {"render_modes": [], "render_fps": FPS}  # noqa: RUF012 - Gymnasium's own style

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.state = 4, np.full(2, (options or {}).get("init_state", 0) % 7, np.float32)
        return self._seen(), {"instruction": "open the drawer"}

    def step(self, action):
        self.left -= 1
        return self._seen(), 0.0, False, self.left == 0, {"success": False}

    def _seen(self):
        return {"state": self.state, "image": np.zeros(SPACE["image"].shape, np.uint8)}


gym.register("test/LerobotDrawer-v0", Drawer)
DRAWER = ["env.id=test/LerobotDrawer-v0", "env.num_envs=2", "env.eval_states=2", "sft.steps=2", "eval_episodes=2"]


def test_a_run_starts_from_it_without_an_expert(made, tmp_path, capsys):
    recipe = [*DRAWER, f"demos.path={made / 'v2.1'}", f"run_dir={tmp_path}", "env.observation=[state]"]
    assert main(["sft", *recipe]) == 0
    out = capsys.readouterr().out
    assert f"{made / 'v2.1'}: 3 demonstrations (12 steps) of a LeRobot data set v2.1\n" in out
    assert "does not tell initial states" in out and "12 steps of demonstrations, 2 gradient steps" in out
    check_expert(load_config(None, recipe))
    main(["check", *recipe, "groups=2", "group_size=2", "env.chunk_length=2"])
    assert "those of" in next(line for line in capsys.readouterr().out.splitlines() if "ok   demonstrations" in line)


def test_what_stands_for_what_is_told(made):
    lines: list[str] = []
    recipe = [*DRAWER, f"demos.path={made / 'v3.0'}", "demos.features={image: observation.images.top}"]
    demos = demonstrations(load_config(None, recipe), lines.append)
    assert IMAGE in demos.keys(True) and lines[0].endswith("v3.0; image is its observation.images.top")
