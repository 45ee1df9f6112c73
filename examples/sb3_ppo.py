"""Stable-Baselines3's PPO that trains on the kept chunks only; needs ``pip install 'pcm_rl[sb3]'``.

    python examples/sb3_ppo.py

Replace the environment by your own: any Gymnasium environment with a ``Box [D]`` of actions, in ``ChunkedEnv``.
"""

from __future__ import annotations

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from pcm_rl.algos.sb3 import PCMCallback, PCMRolloutBuffer
from pcm_rl.envs import ChunkedEnv

ENVS, DECISIONS = 4, 32


def make_env() -> gym.Env:
    return ChunkedEnv(gym.make("pcm_rl/Reach-v0", horizon=128), record=False)


def main(rollouts: int = 3) -> PPO:
    model = PPO(
        "MlpPolicy",
        DummyVecEnv([make_env] * ENVS),
        n_steps=DECISIONS,
        rollout_buffer_class=PCMRolloutBuffer,
        rollout_buffer_kwargs={"budget": 4},
        seed=0,
        device="cpu",
    )
    model.learn(rollouts * DECISIONS * ENVS, callback=PCMCallback())
    selected = model.rollout_buffer.selected
    print(f"kept {len(selected.index)} of {selected.full} chunks of the last rollout")
    return model


if __name__ == "__main__":
    main()
