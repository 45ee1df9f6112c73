"""A supervised start, chunk selection, the update, resume and export on a small task that it sees."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

from pcm_rl.config import ConfigError, load_config
from pcm_rl.evals.export import export_run
from pcm_rl.policies.pi0 import open_checkpoint
from pcm_rl.training.trainer import Trainer


class Lamp(gym.Env):
    """A brightness is to be turned up or down until it is that of the picture's edge; seven knobs, the first counts."""

    action_space = spaces.Box(-1, 1, (7,), np.float32)
    observation_space = spaces.Dict(
        {"image": spaces.Box(0, 255, (28, 28, 3), np.uint8), "state": spaces.Box(-9, 9, (8,), np.float32)}
    )

    def _observed(self):
        image = np.full((28, 28, 3), 128 + 60 * self.goal, np.uint8)
        return {"image": image, "state": np.full(8, self.light, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal, self.light, self.steps = self.np_random.uniform(-2, 2), 0.0, 0
        return self._observed(), {"instruction": "match the light"}

    def step(self, action):
        self.light += float(action[0])
        self.steps += 1
        there = abs(self.light - self.goal) < 0.4
        return self._observed(), float(there), there, self.steps >= 6, {"success": there}


class Turner:
    """Turns towards the goal."""

    def __init__(self, env):
        self.env = env.unwrapped

    def reset(self, init_state):
        """Remembers nothing."""

    def action(self, observation):
        return np.append(np.clip(self.env.goal - self.env.light, -0.5, 0.5), np.zeros(6)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def registered():
    gym.register("Lamp-v0", entry_point=Lamp)
    yield
    del gym.registry["Lamp-v0"]


@pytest.fixture
def settings(pi0_folder, tmp_path):
    return [
        "env.id=Lamp-v0", "env.init_state=seed", "env.num_envs=4", "env.chunk_length=2", "env.max_chunks=3",
        "env.eval_states=2", "eval_episodes=2", "groups=3", "group_size=4", "selection.budget=1", "logger=none",
        f"demos.expert={__name__}:Turner", "demos.episodes=4", "sft.steps=3", "record=false", "threads=1",
        "policy.family=pi0", f"policy.pi0.checkpoint={pi0_folder}", f"run_dir={tmp_path}",
    ]  # fmt: skip


def silent(line):
    """Say nothing."""


def play(config, *, until, resume=False):
    """Start or resume a run, and save it after step ``until``; without the reports of its end, which take longer."""
    trainer = Trainer(config, silent)
    trainer.resume() if resume else trainer.start()
    while trainer.step < until:
        trainer.complete(trainer.train_step())
    trainer.evaluate()
    trainer.save()
    trainer.env.close()
    return trainer


METHODS = {
    "pcm": ["update.ratio=step"],
    "top-critic": ["advantage.name=critic", "advantage.features=policy", "selection.name=top-advantage",
                   "policy.pi0.train=lora", "policy.checkpointing=always"],
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_resumed_bit_for_bit_and_exported(settings, tmp_path, method):
    options = [*settings, *METHODS[method], "steps=2"]
    whole, cut = (load_config(None, [*options, f"name={name}"]) for name in ("whole", "cut"))
    trainer = play(whole, until=2)
    play(cut, until=1)
    torch.manual_seed(99)
    play(cut, until=2, resume=True)
    for file in ("policy.safetensors", "optimizer.safetensors"):
        first, second = (load_file(config.folder / "checkpoint" / file) for config in (whole, cut))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    saved = [name for name in load_file(whole.folder / "checkpoint" / "policy.safetensors") if name.startswith("model")]
    assert saved and not any("vlm" in name for name in saved), "the frozen base is not saved"
    assert all(".lora_" in name for name in saved) == (method == "top-critic")
    folder = export_run(whole.folder, tmp_path / "exported")
    assert open_checkpoint(folder).statistics == trainer.policy.statistics


def test_images_of_another_size_are_refused_before_the_run(settings, monkeypatch):
    monkeypatch.setattr(Lamp, "observation_space", spaces.Dict(
        {"image": spaces.Box(0, 255, (32, 32, 3), np.uint8), "state": spaces.Box(-9, 9, (8,), np.float32)}
    ))  # fmt: skip
    with pytest.raises(ConfigError, match="28 x 28 pixels, those of the environment are"):
        Trainer(load_config(None, settings), lambda _: None)
