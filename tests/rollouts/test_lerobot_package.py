"""Data sets of ours with the package lerobot, and its data sets with ours; `make test-lerobot` installs it."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from pcm_rl.config import ConfigError
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE, IMAGE, INSTRUCTION, IS_PAD, STATE
from pcm_rl.processes.messages import set_texts
from pcm_rl.rollouts.next_actions import next_actions

lerobot = pytest.importorskip("lerobot", reason="make test-lerobot installs it")
import av  # noqa: E402 - behind the skip
from lerobot.configs.types import FeatureType  # noqa: E402
from lerobot.datasets import dataset_tools  # noqa: E402
from lerobot.datasets.compute_stats import aggregate_stats  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402
from lerobot.datasets.utils import dataset_to_policy_features  # noqa: E402

from pcm_rl.rollouts.lerobot import read_lerobot, write_lerobot  # noqa: E402

LENGTHS, FPS, L = torch.tensor([5, 2, 6]), 20, 4
TASKS = ("pick it", "place it", "pick it")
SPACE = spaces.Dict(
    {
        "state": spaces.Box(-9, 9, (3,), np.float32),
        "image": spaces.Box(0, 255, (32, 48, 3), np.uint8),
        "wrist_image": spaces.Box(0, 255, (64, 64, 3), np.uint8),
    }
)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)


def made():
    generator = torch.Generator().manual_seed(0)
    rows = int(LENGTHS.sum())
    chunk, is_pad = next_actions(2 * torch.rand(rows, 2, generator=generator) - 1, LENGTHS, L)
    demos = TensorDict(
        {
            CHUNK: chunk,
            IS_PAD: is_pad,
            EPISODE: torch.tensor([7, 3, 11]).repeat_interleave(LENGTHS),
            CHUNK_ID: torch.cat([torch.arange(n) for n in LENGTHS.tolist()]),
            STATE: torch.randn(rows, 3, generator=generator),
            IMAGE: torch.randint(256, (rows, 3, 32, 48), generator=generator, dtype=torch.uint8),
            ("observation", "wrist_image"): torch.randint(256, (rows, 3, 64, 64), dtype=torch.uint8),
        },
        batch_size=[rows],
    )
    return set_texts(demos, {INSTRUCTION: [t for t, n in zip(TASKS, LENGTHS.tolist(), strict=True) for _ in range(n)]})


def opened(folder, **options):
    return LeRobotDataset("local/set", root=folder, **options)


@pytest.fixture
def ours(tmp_path):
    demos = made()
    write_lerobot(demos, tmp_path / "ours", fps=FPS, settings={}, file_mb=1e-6)
    return demos, tmp_path / "ours"


def test_it_loads_ours(ours):
    demos, folder = ours
    data = opened(folder, delta_timestamps={"action": [step / FPS for step in range(L)]})
    assert (len(data), data.num_episodes, data.fps, data.meta.total_tasks) == (13, 3, FPS, 2)
    for index in range(13):
        step, row = data[index], demos[index]
        assert step["task"] == demos.get(INSTRUCTION).tolist()[index]
        assert int(step["frame_index"]) == row[CHUNK_ID] and int(step["index"]) == index
        assert torch.equal(step["action"], row[CHUNK]) and torch.equal(step["action_is_pad"], row[IS_PAD])
        assert torch.equal(step["observation.state"], row[STATE])
        for name in ("image", "wrist_image"):
            pixels = (step[f"observation.images.{name}"] * 255).round().byte()
            assert torch.equal(pixels, row["observation", name])
    assert len(opened(folder, episodes=[2])) == 6
    merged = aggregate_stats([data.meta.stats, data.meta.stats])
    np.testing.assert_allclose(merged["action"]["mean"], demos[CHUNK][:, 0].mean(0), atol=1e-6)


def test_its_policy_trains_on_ours(ours, monkeypatch):
    _, folder = ours
    package = types.ModuleType("lerobot.policies")  # its own __init__ imports every policy, and what all of them need
    package.__path__ = [str(Path(lerobot.__file__).parent / "policies")]
    monkeypatch.setitem(sys.modules, "lerobot.policies", package)
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    features = dataset_to_policy_features(opened(folder).meta.features)
    outputs = {name: feature for name, feature in features.items() if feature.type is FeatureType.ACTION}
    inputs = {name: feature for name, feature in features.items() if name not in outputs and "image" not in name}
    images = {name: feature for name, feature in features.items() if name == "observation.images.image"}
    assert images["observation.images.image"].shape == (3, 32, 48)
    config = ACTConfig(
        input_features=inputs | images, output_features=outputs, chunk_size=L, n_action_steps=L, dim_model=16,
        n_heads=2, dim_feedforward=16, n_encoder_layers=1, pretrained_backbone_weights=None, device="cpu",
    )  # fmt: skip
    policy = ACTPolicy(config)
    data = opened(folder, delta_timestamps={"action": [step / FPS for step in config.action_delta_indices]})
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=4)))
    loss, _ = policy(batch)
    loss.backward()
    assert bool(torch.isfinite(loss)) and any(p.grad is not None for p in policy.parameters())


def test_what_it_adds_to_ours_is_seen(ours):
    """The file with initial states then speaks of other episodes."""
    demos, folder = ours
    add(opened(folder), 1)
    with pytest.raises(ConfigError, match="it was changed afterwards"):
        read_lerobot(folder, SPACE, ACTIONS)
    (folder / "meta/pcm_rl.json").unlink()
    rows = read_lerobot(folder, SPACE, ACTIONS, chunk_length=L)
    assert rows[EPISODE].unique_consecutive().tolist() == [-1, -2, -3, -4]
    assert torch.equal(rows[:13][CHUNK], demos[CHUNK]) and torch.equal(rows[:13][IMAGE], demos[IMAGE])


def test_what_its_tools_make_of_ours_is_read(ours, tmp_path):
    demos, folder = ours
    left = dataset_tools.delete_episodes(opened(folder), [1], output_dir=tmp_path / "left", repo_id="local/left")
    dataset_tools.merge_datasets([opened(folder), left], output_repo_id="local/both", output_dir=tmp_path / "both")
    films = dataset_tools.convert_image_to_video_dataset(
        opened(folder), output_dir=tmp_path / "films", repo_id="local/films", num_workers=1
    )
    kept = demos[torch.tensor([0] * 5 + [1] * 2 + [0] * 6) == 0]
    for name, expected in {"left": kept, "both": torch.cat([demos, kept]), "films": demos}.items():
        rows = read_lerobot(tmp_path / name, SPACE, ACTIONS, chunk_length=L)
        assert torch.equal(rows[CHUNK], expected[CHUNK]) and torch.equal(rows[IS_PAD], expected[IS_PAD])
        assert torch.equal(rows[STATE], expected[STATE])
        assert rows.get(INSTRUCTION).tolist() == expected.get(INSTRUCTION).tolist()
        assert name == "films" or torch.equal(rows[IMAGE], expected[IMAGE])
    assert films.meta.video_keys == ["observation.images.image", "observation.images.wrist_image"]


def add(data, episodes):
    """Record some steps by its own functions; what was given to them."""
    rng, frames = np.random.default_rng(0), []
    for episode in range(episodes):
        for step in range(4 + episode):
            frame = {
                "observation.state": rng.random(3, dtype=np.float32),
                "action": rng.random(2, dtype=np.float32),
                "observation.images.image": rng.integers(256, size=(32, 48, 3), dtype=np.uint8),
                "observation.images.wrist_image": np.full((64, 64, 3), 20 * step + 7 * episode, np.uint8),
                "task": TASKS[episode],
            }
            frames.append(dict(frame))
            data.add_frame(frame)
        data.save_episode()
    data.finalize()
    return frames


@pytest.mark.parametrize("kind", ["image", "video"])
def test_we_load_its(tmp_path, kind):
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": None},
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        "observation.images.image": {"dtype": "image", "shape": (32, 48, 3), "names": ["height", "width", "channels"]},
        "observation.images.wrist_image": {
            "dtype": kind,
            "shape": (64, 64, 3),
            "names": ["height", "width", "channels"],
        },
    }
    data = LeRobotDataset.create("local/set", FPS, features, root=tmp_path / "its", use_videos=kind == "video")
    frames = add(data, 3)
    rows = read_lerobot(tmp_path / "its", SPACE, ACTIONS, chunk_length=2)
    assert len(rows) == len(frames) == 4 + 5 + 6
    assert rows.get(INSTRUCTION).tolist() == [frame["task"] for frame in frames]
    for name, key in (("observation.state", STATE), ("observation.images.image", IMAGE)):
        given = torch.from_numpy(np.stack([frame[name] for frame in frames]))
        assert torch.equal(rows[key], given.permute(0, 3, 1, 2) if given.ndim == 4 else given)
    assert torch.equal(rows[CHUNK][:, 0], torch.from_numpy(np.stack([frame["action"] for frame in frames])))
    wrist = rows["observation", "wrist_image"]
    if kind == "image":
        assert torch.equal(
            wrist[:, 0, 0, 0], torch.tensor([int(f["observation.images.wrist_image"][0, 0, 0]) for f in frames])
        )
    else:
        (path,) = (tmp_path / "its/videos").rglob("*.mp4")
        with av.open(str(path)) as film:
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
        assert (wrist.permute(0, 2, 3, 1).int() - torch.from_numpy(decoded).int()).abs().max() <= 2
