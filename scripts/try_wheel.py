"""What a newcomer does after ``pip install``: the version, a short training run, the Gymnasium wrapper.

Run by ``scripts/release.py`` with the version that is expected, in an empty environment and an empty folder.
"""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import torch

import pcm_rl
from pcm_rl.envs import ChunkedEnv

VERSION = sys.argv[1]
PROGRAM = Path(sys.executable).with_name("pcm-rl")
RUN = ["--config", "reach", "steps=2", "eval_every=2", "eval_episodes=16", "sft.steps=50", "name=first"]


class Lift(gymnasium.Env):
    """A point that is to be lifted: the least that somebody's own environment has."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)  # upwards, gripper

    def reset(self, *, seed=None, options=None):
        """Begins on the table."""
        super().reset(seed=seed)
        self.height = 0.0
        return self._seen(), {}

    def step(self, action):
        """The action's first number is a tenth of the height that is won."""
        self.height = min(self.height + 0.1 * float(action[0]), 1.0)
        return self._seen(), float(self.height == 1), self.height == 1, False, {"success": self.height == 1}

    def _seen(self):
        return np.array([self.height, 0], np.float32)


def printed(*command: str) -> str:
    """What a command of the environment prints."""
    return subprocess.run([PROGRAM, *command], check=True, capture_output=True, text=True).stdout.strip()


installed = Path(pcm_rl.__file__).resolve()
assert installed.is_relative_to(Path(sys.prefix).resolve()), f"{installed} is not in this environment"
assert printed("--version") == f"pcm_rl {VERSION}", printed("--version")
assert importlib.metadata.version("pcm_rl") == VERSION
printed("check")
printed("train", *RUN)
for name in ("report.html", "metrics.csv", "config.yaml"):
    assert Path("runs", "first", name).is_file(), name

env = ChunkedEnv(Lift(), chunk_length=4)
env.reset(seed=0)
done, chunks = False, 0
while not done:
    *_, terminated, truncated, info = env.step(np.tile(np.array([0.5, 1.0], np.float32), (4, 1)))
    done, chunks = terminated or truncated, chunks + 1
trajectory = info["trajectory"]
assert (
    info["success"]
    and len(trajectory) == chunks == 5
    and trajectory["vla_action", "chunk"].shape[1:] == torch.Size([4, 2])
)

names = ("torch", "torchrl", "tensordict", "gymnasium", "numpy")
shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
print(f"`reach` trained, the wrapper recorded {chunks} chunks; {shown}")
