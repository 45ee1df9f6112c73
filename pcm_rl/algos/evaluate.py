"""Success with a confidence interval on held-out initial states, and a film of an episode."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import RenderCollection
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor

from pcm_rl.algos.collect import Policy, collect_episodes, episode_outcomes
from pcm_rl.envs.chunked import ChunkedEnv
from pcm_rl.episodes import CHUNK, PHASE, STATE


@dataclass(frozen=True)
class Success:
    """A measured success rate.

    Attributes:
        success: Share in [0, 1].
        low: Lower end of the Wilson interval at 95 %.
        high: Upper end.
        successes: Number of successes.
        episodes: Number of rollouts.
    """

    success: float
    low: float
    high: float
    successes: int
    episodes: int

    def as_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.success:.1%} [{self.low:.1%}, {self.high:.1%}] ({self.successes}/{self.episodes})"


def wilson(successes: int, episodes: int, z: float = 1.959964) -> Success:
    """Wilson score interval of a binomial share, at 95 % by default.

    Raises:
        ValueError: If there is no episode, or more successes than episodes.
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise ValueError(f"expected 0 <= successes <= episodes and episodes >= 1, got {successes} of {episodes}")
    share = successes / episodes
    scale = 1.0 + z * z / episodes
    centre = (share + z * z / (2 * episodes)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / episodes + z * z / (4 * episodes**2))
    low = (
        0.0 if successes == 0 else centre - half
    )  # exact at the ends, where rounding would leave the interval off 0 or 1
    high = 1.0 if successes == episodes else centre + half
    return Success(share, low, high, successes, episodes)


def evaluate(
    env: VectorEnv, policy: Policy, init_states: Tensor, episodes: int, *, seed: int, device: str = "cpu"
) -> tuple[Success, Tensor]:
    """Roll out ``policy`` (sampled) on held-out initial states, in order and repeated if need be.

    The random state of the caller is left untouched, and the same call gives the same result.

    Args:
        env: Vector of chunked environments.
        policy: The policy.
        init_states: ``[J]``.
        episodes: Number of rollouts.
        seed: Seed of the sampled actions.
        device: Where the policy runs.

    Returns:
        The success rate, and the outcome of each rollout ``[episodes]`` bool (rollout ``i`` starts at state
        ``i mod J``).
    """
    states = init_states[torch.arange(episodes) % len(init_states)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = collect_episodes(env, policy, states, torch.arange(episodes), device=device)
    outcome, _ = episode_outcomes(rows)
    return wilson(int(outcome.sum()), episodes), outcome


def film_episode(
    env: gym.Env, policy: Policy, init_state: int, *, seed: int, device: str = "cpu", frame_step: int = 2
) -> tuple[Tensor, Tensor, bool]:
    """Play one episode and keep its frames.

    Args:
        env: Chunked environment over a base with ``render_mode="rgb_array"`` wrapped by :func:`filmable`.
        policy: The policy.
        init_state: Where to start.
        seed: Seed of the sampled actions.
        device: Where the policy runs.
        frame_step: Steps a frame.

    Returns:
        ``frames [T, H, W, 3]`` uint8, the phase shown in each ``[T]`` int64, and the outcome.
    """
    observation, _ = env.reset(options={"init_state": init_state})
    info: dict[str, Any] = {}
    frames: list[np.ndarray] = []
    steps: list[int] = []
    ended = False
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        while not ended:
            state = torch.from_numpy(np.array(observation, dtype=np.float32)).unsqueeze(0)
            out = policy(TensorDict({STATE: state}, batch_size=[1]).to(device))
            observation, _, terminated, truncated, info = env.step(out.get(CHUNK)[0].cpu().numpy())
            frames += cast("list[np.ndarray]", env.render())
            steps.append(int((~info["action_is_pad"]).sum()))
            ended = terminated or truncated
    phase = info["episode"].get(PHASE).repeat_interleave(torch.tensor(steps))
    stack = np.stack(frames)[-len(phase) :]  # the frame of the reset has no phase
    return torch.from_numpy(stack[::frame_step].copy()), phase[::frame_step].clone(), bool(info["success"])


def filmable(env: gym.Env, **chunked: object) -> ChunkedEnv:
    """Chunk a base environment with ``render_mode="rgb_array"`` so that every inner step leaves a frame."""
    return ChunkedEnv(RenderCollection(env), **chunked)  # type: ignore[arg-type]


def save_film(path: Path, frames: Tensor, phase: Tensor, metadata: dict[str, str]) -> None:
    """Write a film for the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"frames": frames.contiguous(), "phase": phase.contiguous()}, path, metadata)
