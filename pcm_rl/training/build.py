"""Configuration -> policy and credit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import create_empty_array
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.algos.credit import GROUP_CREDIT, Credit, plugin_credit
from pcm_rl.algos.critic import Features, SuccessCritic, state_features
from pcm_rl.algos.critic_credit import critic_credit
from pcm_rl.config import FAMILIES, Config, ConfigError, PolicyConfig
from pcm_rl.envs.observation import observation_readers, read_observation
from pcm_rl.episodes import INSTRUCTION, STATE
from pcm_rl.policies.bins import check_reach
from pcm_rl.policies.family import CountsTokens, GivesFeatures, Recomputes, RecordsFeatures, lacks
from pcm_rl.support.plugins import load_callable
from pcm_rl.training.checkpoint import load_policy

FEATURE_ROWS = 64  # rows of a forward pass for a critic's features


def make_policy(config: Config, env: VectorEnv) -> VLAWrapperBase:
    """A token policy that fits ``env``, with fresh weights (OpenVLA: fresh adapters) or those of ``policy.init``.

    Raises:
        ConfigError: If the family refuses its settings or the environment, its chunks or its actions are not the
            environment's, or the policy lacks something that the configuration needs.
    """
    action_space = env.single_action_space
    assert isinstance(action_space, spaces.Box)
    policy = policy_for(config.policy, env.single_observation_space, action_space, config.device)
    try:
        check_reach(getattr(policy, "action_tokenizer", None), action_space)
    except ValueError as error:
        raise ConfigError(f"policy.family={config.policy.family}: {error}") from error
    if config.policy.checkpointing == "always" and not isinstance(policy, Recomputes):
        raise ConfigError(f"policy.checkpointing=always: {config.policy.family} cannot compute its blocks again")
    if config.update.micro_tokens is not None and not isinstance(policy, CountsTokens):
        raise ConfigError(
            f"update.micro_tokens: {config.policy.family} does not count tokens (row_tokens); use update.micro_rows"
        )
    if config.policy.init is not None:
        load_start(policy, config.policy.init)
    return policy.to(config.device)


def load_start(policy: VLAWrapperBase, path: str) -> None:
    """Read the weights of ``policy.init``.

    Raises:
        ConfigError: If its bins or its units are others: the same outputs would mean other actions.
        ValueError: If it does not fit.
    """
    units = {name: buffer.clone() for name, buffer in policy.named_buffers() if name.startswith("action_")}
    with torch.no_grad():
        load_policy(policy, path)
    for name, buffer in policy.named_buffers():
        if name in units and not torch.equal(buffer, units[name]):
            what = "bins" if name.startswith("action_tokenizer.") else "units"
            raise ConfigError(
                f"policy.init={path}: its {what} are others ({name} is {buffer.tolist()}, here "
                f"{units[name].tolist()}); it was trained in another action box"
            )


def policy_for(
    section: PolicyConfig, observation_space: spaces.Space[Any] | None, action_space: spaces.Box, device: str
) -> VLAWrapperBase:
    """A policy of the family that ``policy.family`` names; see :mod:`pcm_rl.policies.family`.

    Args:
        section: The section ``policy``.
        observation_space: Of one environment; None for an export, which builds no environment.
        action_space: ``Box [L, D]``.
        device: Of its weights.

    Raises:
        ConfigError: If the family refuses its settings or the spaces, or returns something that is no token policy.
    """
    built_in = section.family in FAMILIES
    settings = dataclasses.asdict(getattr(section, section.family)) if built_in else dict(section.options)
    try:
        make = load_callable(FAMILIES.get(section.family, section.family))
    except ValueError as error:
        raise ConfigError(f"policy.family: {error}") from error
    try:
        policy = make(observation_space, action_space, device=device, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"policy.family={section.family}: {error}") from error
    if lacking := lacks(policy):
        raise ConfigError(
            f"policy.family={section.family} made a {type(policy).__name__} without {', '.join(lacking)}; see "
            "pcm_rl.policies.family"
        )
    expected = (policy.chunk_size, policy.action_dim)
    if action_space.shape != expected:
        raise ConfigError(
            f"policy.family={section.family}: its chunks are {expected}, the environment's {action_space.shape}"
        )
    token_policy: VLAWrapperBase = policy
    return token_policy


def make_credit(config: Config, env: VectorEnv, policy: VLAWrapperBase) -> Credit:
    """The credit of the section ``advantage``.

    Raises:
        ConfigError: If the environment gives no state and the critic reads one, or ``advantage.name`` names no credit.
    """
    section = config.advantage
    if section.name == "group":
        return GROUP_CREDIT
    if section.name != "critic":
        try:
            return plugin_credit(section.name, section.options)
        except ValueError as error:
            raise ConfigError(f"advantage.name: {error}") from error
    features = critic_features(config, policy)
    example = _example_row(env, policy)
    if section.features == "state" and STATE not in example.keys(include_nested=True):
        raise ConfigError(
            f"advantage.name=critic reads {STATE}, which {config.env.id} does not give; use advantage.features=policy, "
            "features of your own (module:function), or advantage.name=group"
        )
    width = features(example).shape
    if len(width) != 2 or width[0] != 1:
        raise ConfigError(f"advantage.features={section.features} gives {tuple(width)} for one row, expected [1, F]")
    critic = SuccessCritic(
        width[1],
        config.env.slots,
        lam=section.lam,
        memory=section.memory,
        steps=section.steps,
        lr=section.lr,
        width=section.width,
        seed=config.seed,
        features=features,
    )
    return critic_credit(critic, scale=section.scale, every_group=section.every_group)


def critic_features(config: Config, policy: VLAWrapperBase) -> Features:
    """The features that a critic reads: ``rows [M] -> [M, F]``; called for rows that do not hold them yet.

    A policy that can record its features does so from now on if the critic reads them, and no longer if it reads
    others.

    Raises:
        ConfigError: If the policy has no features, or ``advantage.features`` names nothing that can be called.
    """
    name = config.advantage.features
    if isinstance(policy, RecordsFeatures):
        policy.record_critic_features(name == "policy")
    if name == "state":
        return state_features
    if name == "policy":
        if not isinstance(policy, GivesFeatures):
            raise ConfigError(f"advantage.features=policy: {config.policy.family} gives none (a method features(rows))")
        if config.rollouts.overlap and config.rollouts.cut is not None and not isinstance(policy, RecordsFeatures):
            raise ConfigError(
                f"rollouts.overlap with rollouts.cut and advantage.features=policy: {config.policy.family} would judge "
                "rollouts while it is trained; give it a method record_critic_features, or leave one of the three out"
            )
        return _features_of(policy, torch.device(config.device))
    try:
        features: Features = load_callable(name)
    except ValueError as error:
        raise ConfigError(f"advantage.features: {error}") from error
    return features


def _features_of(policy: GivesFeatures, device: torch.device) -> Features:
    def features(rows: TensorDictBase) -> Tensor:
        return torch.cat([policy.features(piece.to(device)).cpu() for piece in rows.split(FEATURE_ROWS)])

    return features


def _example_row(env: VectorEnv, policy: VLAWrapperBase) -> TensorDict:
    """One row with an observation of zeros, for a critic's features."""
    space = env.single_observation_space
    observation = read_observation(observation_readers(space), create_empty_array(space, n=1, fn=_zeros))
    row = TensorDict(dict(observation), batch_size=[1])
    return row.set(INSTRUCTION, "do it") if INSTRUCTION in policy.in_keys else row


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.zeros(shape, dtype)
