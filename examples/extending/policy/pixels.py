"""A policy family in one file: a small CNN that acts on pixels, and a task that shows it some."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from tensordict.nn import InteractionType
from torch import Tensor, nn
from torchrl.data.vla import UniformActionTokenizer
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.episodes import FEATURES
from pcm_rl.policies import action_range, calls_of, critic_input

BINS = 16


def cnn(
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Box,
    *,
    device: str = "cpu",
    width: int = 32,
    temperature: float = 1.0,
) -> CNNPolicy:
    """The family: a fresh policy for an environment."""
    shape = getattr(observation_space, "shape", None) or ()
    if len(shape) != 3:
        raise ValueError(f"expected an image [H, W, 3], got {observation_space}")
    return CNNPolicy(shape[:2], action_space, width, temperature).to(device)


class CNNPolicy(VLAWrapperBase):
    """Image ``[M, 3, H, W]`` uint8 -> ``L * D`` action tokens."""

    records = False  # whether acting writes what a critic sees

    def __init__(self, image: tuple[int, ...], actions: spaces.Box, width: int, temperature: float) -> None:
        length, dimensions = actions.shape
        low, high = action_range(actions)
        channels = (3, width, 2 * width, 2 * width)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        cells = (image[0] // 8) * (image[1] // 8)
        head = nn.Linear(256, length * dimensions * BINS)
        super().__init__(
            nn.Sequential(*layers, nn.Flatten(), nn.Linear(cells * channels[-1], 256), nn.SiLU(), head),
            action_dim=dimensions,
            chunk_size=length,
            action_head="tokens",
            vocab_size=BINS,
            action_tokenizer=UniformActionTokenizer(BINS, low=low, high=high),
            output_mode="both",
            log_probs_mode="token",
            return_vla_action_container=False,
            default_interaction_type=InteractionType.RANDOM,
        )
        self.temperature = temperature

    def _update_keys(self) -> None:
        super()._update_keys()
        self.in_keys = [self.tensor_keys.image]
        if self.records:
            self.out_keys.append(FEATURES)

    def _predict(self, tensordict: TensorDictBase) -> Tensor:
        logits: Tensor = self.model(self._pixels(tensordict))
        return logits / self.temperature

    def _pixels(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict.get(self.tensor_keys.image).float() / 127.5 - 1.0

    # what follows is for advantage.features=policy: a critic that sees the last hidden layer

    @torch.no_grad()
    def features(self, tensordict: TensorDictBase) -> Tensor:
        """The last hidden layer, ``[M, 256]``."""
        return critic_input(self.model[:-1](self._pixels(tensordict)))

    def record_critic_features(self, enabled: bool) -> None:
        """Write it when acting, or no longer."""
        self.records = enabled
        self._update_keys()

    def forward(self, tensordict: TensorDictBase, **options: Any) -> TensorDictBase:
        """Act, and keep what the head has read."""
        if not self.records:
            return super().forward(tensordict, **options)
        with calls_of(self.model[-1]) as calls:
            out = super().forward(tensordict, **options)
        return out.set(FEATURES, critic_input(calls[0][0]))


class Dots(gym.Env[np.ndarray, np.ndarray]):
    """Move the white dot onto the red one and pinch there; all that is seen is an image of 32 x 32 pixels."""

    def __init__(self, horizon: int = 48) -> None:
        self.observation_space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)  # dx, dy, pinch
        self.horizon = horizon

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """``options={"init_state": k}`` names where both dots are."""
        super().reset(seed=seed)
        start = (options or {}).get("init_state", self.np_random.integers(2**31))
        self.dot, self.target = np.random.default_rng(int(start)).uniform(0.1, 0.9, (2, 2))
        self.elapsed = 0
        return self._image(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """1 is paid for the first pinch at the target, which ends the episode."""
        self.dot = (self.dot + STEP * np.clip(action[:2], -1.0, 1.0)).clip(0.05, 0.95)
        self.elapsed += 1
        success = bool(action[2] > 0.0 and np.abs(self.dot - self.target).max() < NEAR)
        return self._image(), float(success), success, self.elapsed >= self.horizon, {"success": success}

    def _image(self) -> np.ndarray:
        image = np.zeros((32, 32, 3), np.uint8)
        for (x, y), color in ((self.target, (255, 0, 0)), (self.dot, (255, 255, 255))):
            row, column = int(32 * y), int(32 * x)
            image[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = color
        return image


STEP, NEAR = 0.04, 0.05
gym.register("Dots-v0", entry_point=Dots)


class Expert:
    """Goes straight to the target, and pinches there."""

    def __init__(self, env: gym.Env) -> None:
        self.env: Any = env.unwrapped

    def reset(self, init_state: int) -> None:
        """It remembers nothing."""

    def action(self, observation: Any) -> np.ndarray:
        """The next action, from where the dots are."""
        way = self.env.target - self.env.dot
        pinch = 1.0 if np.abs(way).max() < NEAR else -1.0
        return np.array([*(way / STEP).clip(-1.0, 1.0), pinch], np.float32)
