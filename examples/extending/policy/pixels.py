"""A policy family in one file: a small CNN that acts on pixels, and a toy task that shows it some."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from tensordict import TensorDictBase
from tensordict.nn import InteractionType
from torch import Tensor, nn
from torchrl.data.vla import UniformActionTokenizer
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.envs.experts import Expert, make_expert

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
    assert isinstance(observation_space, spaces.Dict)
    height, across, _ = observation_space["image"].shape
    return CNNPolicy((height, across), action_space.shape, width, temperature).to(device)


class CNNPolicy(VLAWrapperBase):
    """Image ``[M, 3, H, W]`` uint8 -> ``L * D`` action tokens."""

    def __init__(self, image: tuple[int, int], chunk: tuple[int, ...], width: int, temperature: float) -> None:
        length, dimensions = chunk
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
            action_tokenizer=UniformActionTokenizer(BINS, low=-1.0, high=1.0),
            output_mode="both",
            log_probs_mode="token",
            return_vla_action_container=False,
            default_interaction_type=InteractionType.RANDOM,
        )
        self.temperature = temperature

    def _update_keys(self) -> None:
        super()._update_keys()
        self.in_keys = [self.tensor_keys.image]

    def _predict(self, tensordict: TensorDictBase) -> Tensor:
        logits: Tensor = self.model(tensordict.get(self.tensor_keys.image).float() / 127.5 - 1.0)
        return logits / self.temperature


class Pixels(gym.ObservationWrapper[Any, Any, Any]):
    """A small frame beside the toy task's state, which only the scripted expert looks at."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        image = spaces.Box(0, 255, (60, 120, 3), np.uint8)
        self.observation_space = spaces.Dict({"image": image, "state": env.observation_space})

    def observation(self, observation: Any) -> dict[str, Any]:
        """The frame from the side and from above, every fourth pixel."""
        return {"image": np.ascontiguousarray(self.render()[::4, ::4]), "state": observation}


class _StateExpert:
    def __init__(self, env: gym.Env) -> None:
        self._expert: Expert = make_expert("pcm_rl/Reach-v0", env)

    def reset(self, init_state: int) -> None:
        self._expert.reset(init_state)

    def action(self, observation: dict[str, Any]) -> np.ndarray:
        return self._expert.action(observation["state"])


def expert(env: gym.Env) -> Expert:
    """The toy's own expert, on the state."""
    return _StateExpert(env)
