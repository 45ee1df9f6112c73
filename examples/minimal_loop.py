"""GRPO with chunk selection from the library's pieces alone: about thirty lines for any Gymnasium environment.

    python examples/minimal_loop.py

Replace ``make_env`` by your own benchmark. It needs a ``Box [D]`` of actions, a vector as observation, and initial
states with a name: ``reset(options={"init_state": k})``, or seeds through ``pcm_rl.envs.SeededStates``.
"""

from __future__ import annotations

import gymnasium as gym
import torch

from pcm_rl import group_advantage
from pcm_rl.algos import ChunkGRPOLoss, LabelPhases, PCMSampler, collect_episodes, grpo_update
from pcm_rl.algos.sft import supervise
from pcm_rl.envs import chunked_vector_env
from pcm_rl.envs.experts import make_expert
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts.collect import episode_outcomes
from pcm_rl.rollouts.demonstrations import record_demonstrations

TASK, GROUPS, GROUP_SIZE = "pcm_rl/Reach-v0", 8, 8


def make_env() -> gym.Env:
    return gym.make(TASK, horizon=128)


def main(steps: int = 10) -> list[float]:
    torch.manual_seed(0)
    policy = StateTokenPolicy(state_dim=26, action_dim=7, chunk_length=8)
    single = make_env()
    demos = record_demonstrations(single, make_expert(TASK, single), range(1000, 1100), episodes=16, noise=0.2)
    supervise(policy, demos, steps=300)

    env = chunked_vector_env(make_env, num_envs=8, chunk_length=8, workers=False)
    label, sampler = LabelPhases(gripper_index=-1), PCMSampler(budget=4)
    loss = ChunkGRPOLoss(policy, clip_epsilon=(0.2, 0.4))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4)
    history = []
    for step in range(steps):
        group = torch.arange(GROUPS).repeat_interleave(GROUP_SIZE)
        batch = label(collect_episodes(env, policy, init_state=step * GROUPS + group, group=group))
        success, groups = episode_outcomes(batch)
        batch["advantage"] = group_advantage(success, groups)[batch["episode_id"]]
        kept = sampler(batch[batch["advantage"] != 0])  # groups of one outcome carry no signal
        grpo_update(loss, optimizer, kept)
        history.append(success.float().mean().item())
        print(f"step {step}  success {history[-1]:.0%}  chunks {len(kept)} of {len(batch)}")
    env.close()
    return history


if __name__ == "__main__":
    main()
