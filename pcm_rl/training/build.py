"""Configuration -> policy and critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.algos.critic import SuccessCritic
from pcm_rl.config import Config, ConfigError
from pcm_rl.envs.chunked import observation_readers
from pcm_rl.episodes import STATE
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.training.checkpoint import load_policy

if TYPE_CHECKING:  # it needs packages that a state policy does without
    from pcm_rl.policies.openvla import OpenVLAPolicy


def make_policy(config: Config, env: VectorEnv) -> VLAWrapperBase:
    """A token policy that fits ``env``, with fresh weights (OpenVLA: fresh adapters) or those of ``policy.init``.

    Raises:
        ConfigError: If a checkpoint is refused, or its chunks are not the environment's.
        ValueError: If the environment's observation is not a vector, where the policy reads one.
    """
    if config.policy.checkpoint is None:
        policy = _state_policy(config, env)
    else:
        policy = openvla_policy(config)
        expected, action = (policy.chunk_size, policy.action_dim), env.single_action_space.shape
        if action != expected:
            raise ConfigError(f"{config.policy.checkpoint}: its chunks are {expected}, the environment's {action}")
    if config.policy.init is not None:
        with torch.no_grad():
            load_policy(policy, config.policy.init)
    return policy.to(config.device)


def make_critic(config: Config, env: VectorEnv) -> SuccessCritic | None:
    """The critic that gives chunks their advantage, None where the group does.

    Raises:
        ConfigError: If the environment gives no state.
    """
    chosen = config.advantage
    if chosen.name == "group":
        return None
    space, readers = env.single_observation_space, observation_readers(env.single_observation_space)
    if STATE not in readers:
        raise ConfigError(
            f"advantage.name=critic reads {STATE}, which {config.env.id} does not give; use advantage.name=group"
        )
    name, _ = readers[STATE]
    state = space if name is None else cast(gym.spaces.Dict, space)[name]
    assert state.shape is not None
    return SuccessCritic(
        state.shape[0], config.env.max_chunks, lam=chosen.lam, steps=chosen.steps, lr=chosen.lr, seed=config.seed
    )


def openvla_policy(config: Config) -> OpenVLAPolicy:
    """The model of ``policy.checkpoint`` with fresh adapters, or with every weight trainable where their rank is 0.

    Raises:
        ConfigError: If the checkpoint is refused, or no layer answers to ``policy.lora.targets``.
    """
    from pcm_rl.policies.openvla import CheckpointError, OpenVLAPolicy, add_lora, open_checkpoint, quantize_language
    from pcm_rl.policies.openvla.attention_check import check_bidirectional

    chosen = config.policy
    assert chosen.checkpoint is not None
    dtype: torch.dtype = getattr(torch, chosen.dtype)
    try:
        policy = OpenVLAPolicy(
            open_checkpoint(chosen.checkpoint),
            config.env.chunk_length,
            temperature=chosen.temperature,
            statistics=chosen.statistics,
            dtype=dtype,
            device="cpu" if chosen.quantize else config.device,  # so that the GPU never has to hold all of it
            record_features=chosen.record_features,
        )
    except CheckpointError as error:
        raise ConfigError(f"policy.checkpoint: {error}") from error
    if chosen.quantize:
        quantize_language(policy.model, compute_dtype=dtype)
        policy = policy.to(config.device)
    check_bidirectional(policy)
    lora = chosen.lora
    if lora.rank:
        try:
            add_lora(policy.model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
        except ValueError as error:
            raise ConfigError(f"policy.lora.targets: {error}") from error
    else:
        policy.model.requires_grad_()
    if chosen.compile:
        policy.model.compile_blocks()
    return policy


def _state_policy(config: Config, env: VectorEnv) -> StateTokenPolicy:
    observation, action = env.single_observation_space.shape, env.single_action_space.shape
    if observation is None or len(observation) != 1 or action is None or len(action) != 2:
        raise ValueError(
            f"expected observations [S] and actions [L, D], got {observation} and {action}; images need a policy that "
            "sees, policy.checkpoint=FOLDER"
        )
    return StateTokenPolicy(
        observation[0],
        action[1],
        action[0],
        network=config.policy.network,
        width=config.policy.width,
        depth=config.policy.depth,
        num_bins=config.policy.num_bins,
        temperature=config.policy.temperature,
    )
