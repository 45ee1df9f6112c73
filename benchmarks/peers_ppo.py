"""PPO with GAE from TorchRL's parts, on the toy, with our policy; see ``peers.py``.

It is put together as TorchRL's own PPO examples are: a collector whose environments go on over the end of a batch,
``GAE`` computed again in every epoch, ``ClipPPOLoss`` with advantages normalised in each minibatch, an Adam for the
actor and one for the critic, a replay buffer that gives every decision once an epoch.

The policy writes a log-prob for each token. PPO's ratio is that of the decision: the sum over the chunk's tokens, of
the steps that were executed only. What stood behind the end of an episode was drawn too, but changed nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from peers_torchrl import BatchedToy
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.modules import MLP, ValueOperator
from torchrl.modules.vla import VLAWrapperBase
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from pcm_rl.episodes import IS_PAD, LOG_PROBS, STATE, TOKENS

logging.getLogger("torchrl").setLevel(logging.WARNING)  # a line for every storage
CLIP, GRAD_CLIP, LAMBDA = 0.2, 0.5, 0.95
CHUNK_LOG_PROB = "chunk_log_prob"


class ExecutedTokens:
    """What a policy gives for chunks ``[M, L, D]``, as the loss wants it: one log-prob for each decision.

    Args:
        tokens: Of every token, ``[M, L, D]``.
        executed: ``[M, L]`` bool; the others do not count.
    """

    def __init__(self, tokens: Distribution, executed: Tensor) -> None:
        self.tokens, self.executed = tokens, executed

    def log_prob(self, tokens: Tensor) -> Tensor:
        """``[M]`` of the tokens ``[M, L, D]``."""
        return over_executed(self.tokens.log_prob(tokens), self.executed)


def over_executed(log_probs: Tensor, executed: Tensor) -> Tensor:
    """Sum of ``[..., L, D]`` over the executed steps ``[..., L]``, ``[...]``."""
    return (log_probs * executed.unsqueeze(-1)).sum((-2, -1))


class ChunkActor(TensorDictModuleBase):
    """The policy, with :class:`ExecutedTokens` as its distribution.

    Args:
        policy: A token policy.
    """

    def __init__(self, policy: VLAWrapperBase) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys, self.out_keys = [*policy.in_keys, IS_PAD], [TOKENS]

    def get_dist(self, tensordict: TensorDictBase) -> ExecutedTokens:
        """Of the policy as it is now."""
        return ExecutedTokens(self.policy.get_dist(tensordict), ~tensordict.get(IS_PAD))


class PPOPeer:
    """PPO on the chunked toy.

    Args:
        policy: Trained in place.
        env: Vector of chunked environments.
        deal: Gives the next training states.
        lr: Learning rate of both optimisers.
        epochs: Passes over a rollout.
        length: Decisions of a rollout in each environment.
        batch: Decisions of a minibatch.
        warmup: Rollouts on which the critic alone is trained, before the policy moves.
        gamma: Discount of a decision.
    """

    def __init__(
        self,
        policy: VLAWrapperBase,
        env: VectorEnv,
        deal: Callable[[int], Tensor],
        *,
        lr: float = 3e-4,
        epochs: int = 10,
        length: int = 32,
        batch: int = 64,
        warmup: int = 0,
        gamma: float = 0.99,
    ) -> None:
        self.policy, self.epochs, self.warmup, self.chunks = policy, epochs, warmup, 0
        self.env = BatchedToy(env, deal)
        frames = length * env.num_envs
        collector = Collector(self.env, policy, frames_per_batch=frames, auto_register_policy_transforms=False)
        self.rollouts = iter(collector)
        critic = ValueOperator(MLP(env.single_observation_space.shape[0], 1, num_cells=[256, 256],
                                   activation_class=nn.SiLU), in_keys=[STATE])  # fmt: skip
        self.advantage = GAE(gamma=gamma, lmbda=LAMBDA, value_network=critic)
        self.loss = ClipPPOLoss(ChunkActor(policy), critic, clip_epsilon=CLIP, entropy_bonus=False,
                                normalize_advantage=True, loss_critic_type="l2")  # fmt: skip
        self.loss.set_keys(action=TOKENS, sample_log_prob=CHUNK_LOG_PROB)
        self.optimizers = [torch.optim.Adam(part.parameters(), lr=lr, eps=1e-5) for part in (policy, critic)]
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(frames), sampler=SamplerWithoutReplacement(), batch_size=batch
        )
        self.update: Callable[[TensorDict], None] = self._update

    def advance(self) -> int:
        """One rollout and its update; environment steps done."""
        before = self.env.steps
        with torch.no_grad():
            rollout = next(self.rollouts)
        executed = ~rollout.get(("next", IS_PAD))
        rollout.set(IS_PAD, ~executed)  # the root's is that of the decision before
        rollout.set(CHUNK_LOG_PROB, over_executed(rollout.get(LOG_PROBS), executed))
        self.update(rollout)
        return self.env.steps - before

    def _update(self, rollout: TensorDict) -> None:
        moves = self.warmup == 0
        self.warmup = max(0, self.warmup - 1)
        for _ in range(self.epochs):
            with torch.no_grad():
                self.advantage(rollout)
            self.buffer.extend(rollout.reshape(-1))
            for minibatch in self.buffer:
                self._step(self.loss(minibatch), moves)
        self.chunks += self.epochs * rollout.numel() * moves

    def _step(self, losses: TensorDictBase, moves: bool) -> None:
        parts: list[Any] = ["loss_objective", "loss_critic"] if moves else ["loss_critic"]
        sum(losses[part] for part in parts).backward()
        for optimizer in self.optimizers:
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], GRAD_CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
