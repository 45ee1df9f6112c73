"""Stable-Baselines3's PPO on our chunked toy; see ``peers.py``.

Its settings are its own defaults (learning rate 3e-4, minibatches of 64, 10 epochs, gamma 0.99, GAE 0.95, no entropy
bonus, advantages normalised in each minibatch, a critic), but for hidden layers as our policy has (256, 256), and
rollouts of 32 decisions in each of 80 environments, about as many as one of our steps has. ``peers.py`` names other
ones. It knows no groups, and learns from the same reward, 1 at the step of success. Observations are as the supervised
policy was trained on them, about in [-1, 1].

Actions: ``box``, the chunk as one vector of 56 numbers under a Gaussian, which is what one gets without asking, and
``tokens``, 56 categorical variables of 16 bins each, as our policy has: then the weights of the supervised start fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.algos.sb3 import PCMCallback, PCMRolloutBuffer
from pcm_rl.episodes import CHUNK, LOG_PROBS, STATE, TOKENS

DECISIONS = 32  # a rollout, in each environment
ACTOR = ("mlp_extractor.policy_net", "action_net")


class ChunkVecEnv(VecEnv):
    """The toy's vectorised core as Stable-Baselines3 wants it: one decision is one step, ended episodes start anew.

    Args:
        env: Vector of chunked environments, whose actions are ``[L, D]``.
        deal: Gives the next training states.
        decode: Actions ``[E, L * D]`` as the policy has them -> ``[E, L, D]`` in [-1, 1].
        action_space: The policy's.

    Attributes:
        steps: Environment steps executed so far.
    """

    def __init__(
        self,
        env: VectorEnv,
        deal: Callable[[int], Tensor],
        decode: Callable[[np.ndarray], np.ndarray],
        action_space: gym.Space[Any],
    ) -> None:
        self.env, self.deal, self.decode, self.steps = env, deal, decode, 0
        super().__init__(env.num_envs, env.single_observation_space, action_space)

    def reset(self) -> np.ndarray:
        """Start an episode in every environment."""
        return self._start(np.ones(self.num_envs, dtype=np.bool_))

    def _start(self, mask: np.ndarray) -> np.ndarray:
        states = np.zeros(self.num_envs, dtype=np.int64)
        states[mask] = self.deal(int(mask.sum())).numpy()
        return self.env.reset(options={"init_state": states, "reset_mask": mask})[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for :meth:`step_wait`."""
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Execute one chunk everywhere."""
        seen, reward, terminated, truncated, info = self.env.step(self.decode(self.actions))
        self.steps += int((~info["action_is_pad"]).sum())
        done = terminated | truncated
        told = zip(info["action_is_pad"], info["success"], strict=True)
        infos: list[dict[str, Any]] = [{"action_is_pad": pad, "success": bool(success)} for pad, success in told]
        for e in np.flatnonzero(done):
            cut = bool(truncated[e] and not terminated[e])
            infos[e] |= {"terminal_observation": seen[e].copy(), "TimeLimit.truncated": cut}
        if done.any():
            seen = self._start(done)
        return seen, reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing to close: whoever built the vector environment closes it."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Attribute of every environment; ``render_mode`` is all that is asked for."""
        return [getattr(self.env, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """There is no single environment to set anything on."""
        raise NotImplementedError("the environments of a vectorised core cannot be set one by one")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """There is no single environment to call."""
        raise NotImplementedError("the environments of a vectorised core cannot be called one by one")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """None is."""
        return [False] * self.num_envs


class SB3Policy:
    """The sampled actions of a model with another action space than ours, for ``evaluate``.

    Args:
        model: Trained elsewhere.
        decode: See :class:`ChunkVecEnv`.
    """

    in_keys: Sequence[Any] = (STATE,)

    def __init__(self, model: PPO, decode: Callable[[np.ndarray], np.ndarray]) -> None:
        self.model, self.decode = model, decode

    def __call__(self, seen: TensorDictBase) -> TensorDictBase:
        """Writes a sampled chunk for each row."""
        action, _ = self.model.predict(seen.get(STATE).numpy(), deterministic=False)
        chunk = torch.from_numpy(self.decode(action)).float()
        seen.set(CHUNK, chunk)
        seen.set(TOKENS, torch.zeros_like(chunk, dtype=torch.int64))  # collecting asks for them, evaluating does not
        return seen.set(LOG_PROBS, torch.zeros_like(chunk))


class SB3Peer:
    """PPO on the chunked toy.

    Args:
        policy: Ours, whose tokenizer gives the bins and whose weights the actor starts from if ``start``.
        env: Vector of chunked environments.
        deal: Gives the next training states.
        tokens: 56 categorical variables instead of a box.
        start: Copy ``policy``'s weights into the actor; needs ``tokens``.
        seed: Of weights, actions and minibatches.
        lr: Learning rate.
        epochs: Passes over a rollout.
        length: Decisions of a rollout in each environment.
        batch: Decisions of a minibatch.
        warmup: Rollouts on which the critic alone is trained, before the policy moves.
        gamma: Discount of a decision.
        budget: Chunks of each episode in a rollout that are trained on; None takes its own buffer, and all of them.
    """

    def __init__(
        self,
        policy: VLAWrapperBase,
        env: VectorEnv,
        deal: Callable[[int], Tensor],
        *,
        tokens: bool,
        start: bool,
        seed: int,
        lr: float = 3e-4,
        epochs: int = 10,
        length: int = DECISIONS,
        batch: int = 64,
        warmup: int = 0,
        gamma: float = 0.99,
        budget: int | None = None,
    ) -> None:
        chunk = env.single_action_space.shape
        assert chunk is not None
        size = int(np.prod(chunk))
        space = gym.spaces.MultiDiscrete([policy.vocab_size] * size) if tokens else gym.spaces.Box(-1.0, 1.0, (size,))

        def decode(action: np.ndarray) -> np.ndarray:
            action = action.reshape(-1, *chunk)
            return policy.action_tokenizer.decode(torch.from_numpy(action)).numpy() if tokens else action

        self.env = ChunkVecEnv(env, deal, decode, space)
        hidden = [layer.out_features for layer in linear(policy)[:-1]]
        net = {"net_arch": hidden, "activation_fn": nn.SiLU}
        ours: dict[str, Any] = {}
        if budget is not None:
            buffer = {"budget": budget, "decode": decode, "seed": seed}
            ours = {"rollout_buffer_class": PCMRolloutBuffer, "rollout_buffer_kwargs": buffer}
        self.callback = None if budget is None else PCMCallback()
        self.model = PPO("MlpPolicy", self.env, learning_rate=lr, n_epochs=epochs, n_steps=length, batch_size=batch,
                         gamma=gamma, policy_kwargs=net, seed=seed, device="cpu", **ours)  # fmt: skip
        self.model.set_logger(Logger(None, []))  # its own makes a folder
        self.ours, self.decode, self.tokens = policy, decode, tokens
        if start:
            copy_layers(linear(policy), linear(self.model))
        self.warmup, self.chunks = warmup, 0
        self.update: Callable[[], None] = self.model.train
        self.model.train = self._train  # type: ignore[method-assign]  # so that a timed one can take its place

    @property
    def policy(self) -> Any:
        """For evaluations: our policy with the actor's weights, so that peers of one start draw the same actions."""
        if not self.tokens:
            return SB3Policy(self.model, self.decode)
        copy_layers(linear(self.model), linear(self.ours))
        return self.ours

    def advance(self) -> int:
        """One rollout and its update; environment steps done."""
        before = self.env.steps
        self.model.learn(self.model.n_steps * self.env.num_envs, self.callback, reset_num_timesteps=False)
        return self.env.steps - before

    def _train(self) -> None:
        """``PPO.train``; it leaves as it is what has no gradient, so that the actor does not move while warming up."""
        moves = self.warmup == 0
        self.warmup = max(0, self.warmup - 1)
        for name in ACTOR:
            self.model.policy.get_submodule(name).requires_grad_(moves)
        self.update()
        buffer = self.model.rollout_buffer
        kept = getattr(buffer, "selected", None)
        rows = buffer.buffer_size * buffer.n_envs if kept is None else len(kept.index)
        self.chunks += self.model.n_epochs * rows * moves


def linear(network: VLAWrapperBase | PPO) -> list[nn.Linear]:
    """The linear layers of our policy, or of a model's actor; equal weights give equal logits."""
    layers = network.model if isinstance(network, VLAWrapperBase) else [
        *network.policy.mlp_extractor.policy_net, network.policy.action_net
    ]  # fmt: skip
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


@torch.no_grad()
def copy_layers(source: list[nn.Linear], target: list[nn.Linear]) -> None:
    """Weights and biases, in place."""
    for theirs, mine in zip(source, target, strict=True):
        mine.weight.copy_(theirs.weight)
        mine.bias.copy_(theirs.bias)
