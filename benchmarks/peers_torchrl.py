"""TorchRL's ``vla_grpo`` recipe in one process, on our toy, with our policy; see ``peers.py``.

The recipe (``sota-implementations/vla_grpo`` of pytorch/rl, which is not in the wheel) is put together from the same
parts of the package, with its settings: ``MCAdvantage`` on the write path of a replay buffer that gives every decision
once, ``ClipPPOLoss`` without critic or entropy, AdamW, gradient norm 1, one optimiser step for every 64 decisions.
Of its two configurations (toy and LIBERO) it has the toy's minibatches and bounds, and LIBERO's ratio for each token.

Only whole decisions are stored (its collector's ``traj_format="cat"``), so that no chunk after the end of an episode is
there to be masked; the steps of the last chunk that were never executed are not masked either, and count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, LazyTensorStorage, TensorDictReplayBuffer, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules.vla import VLAWrapperBase
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.llm import MCAdvantage

from pcm_rl.config import Config
from pcm_rl.episodes import CHUNK, DONE, GROUP, IS_PAD, LOG_PROBS, STATE, TOKENS

logging.getLogger("torchrl").setLevel(logging.WARNING)  # a line for every storage
CLIP, GRAD_CLIP, KEEP_BOUNDS, DECISIONS = (0.2, 0.28), 1.0, (0.05, 0.95), 64  # the recipe's
RATIOS = {"token": "token", "chunk": "sequence"}  # modes of the policy's log-probs


class BatchedToy(EnvBase):
    """The toy's vectorised core, as a TorchRL environment of ``E`` environments.

    The recipe has one process for each environment and one for the policy; this is the same core that our trainer
    steps, without any process, so that what is compared is not how fast a simulator runs.

    Args:
        env: Vector of chunked environments.
        deal: Gives the initial states of as many environments as are reset, in their order.

    Attributes:
        steps: Environment steps executed so far.
    """

    def __init__(self, env: VectorEnv, deal: Callable[[int], Tensor]) -> None:
        size = torch.Size([env.num_envs])
        super().__init__(batch_size=size)
        self.env, self.deal, self.steps = env, deal, 0
        state, chunk = env.single_observation_space.shape, env.single_action_space.shape
        assert state is not None and chunk is not None
        vector = Composite(state=Unbounded((*size, *state)), shape=size)
        pad = Categorical(2, (*size, chunk[0]), dtype=torch.bool)
        self.observation_spec = Composite({"observation": vector, IS_PAD: pad}, shape=size)
        action = Composite(chunk=Bounded(-1.0, 1.0, (*size, *chunk)), shape=size)
        self.action_spec = Composite(vla_action=action, shape=size)
        self.reward_spec = Unbounded((*size, 1))
        flag = Categorical(2, (*size, 1), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=size)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDict:
        asked = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones(self.batch_size, dtype=torch.bool) if asked is None else asked.flatten()
        states = torch.zeros(self.batch_size, dtype=torch.int64)
        states[mask] = self.deal(int(mask.sum()))
        seen, _ = self.env.reset(options={"init_state": states.numpy(), "reset_mask": mask.numpy()})
        flags = {key: torch.zeros(*self.batch_size, 1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        pad = self.observation_spec[IS_PAD].zero()
        return TensorDict({STATE: torch.from_numpy(seen).clone(), IS_PAD: pad, **flags}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        seen, reward, terminated, truncated, info = self.env.step(tensordict.get(CHUNK).numpy())
        self.steps += int((~info["action_is_pad"]).sum())
        ended, cut = (torch.from_numpy(flag).unsqueeze(-1) for flag in (terminated, truncated))
        return TensorDict(
            {
                STATE: torch.from_numpy(seen).clone(),
                IS_PAD: torch.from_numpy(info["action_is_pad"]).clone(),
                "reward": torch.from_numpy(reward).float().unsqueeze(-1),
                "terminated": ended,
                "truncated": cut,
                "done": ended | cut,
            },
            self.batch_size,
        )

    def _set_seed(self, seed: int | None) -> None:
        """Initial states are named, and actions are drawn from torch's generator."""


def executed(rollout: TensorDictBase) -> TensorDictBase:
    """``[E, T]`` decisions of episodes that ended at different times -> ``[M]`` up to each one's end, in order."""
    done = rollout.get(DONE).squeeze(-1).int()
    return rollout[done.cumsum(1) - done == 0]


def recipe_buffer(config: Config) -> TensorDictReplayBuffer:
    """Takes whole trajectories, drops groups without both outcomes, and gives every decision once."""
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(config.groups * config.group_size * config.env.slots),
        consume_after_n_samples=1,
    )
    buffer.append_transform(
        MCAdvantage(
            grpo_size=config.group_size, prompt_key=GROUP, trajectory_return="sum", keep_return_bounds=KEEP_BOUNDS
        )
    )
    return buffer


class RecipeUpdate:
    """Loss, optimiser and buffer of the recipe.

    Args:
        policy: Trained in place.
        config: Its groups and learning rate are used.
        lr: Another learning rate.
        steps: Optimiser steps a pass; None takes the recipe's, one for every ``decisions`` decisions.
        decisions: Of a minibatch.
        ratio: Of each ``token``, or of the ``chunk``: the sum of its 56 log-probs.
    """

    def __init__(
        self,
        policy: VLAWrapperBase,
        config: Config,
        *,
        lr: float | None = None,
        steps: int | None = None,
        decisions: int = DECISIONS,
        ratio: str = "token",
    ) -> None:
        policy = policy.get_new_version(log_probs_mode=RATIOS[ratio])  # shares the parameters
        self.loss = ClipPPOLoss(actor_network=policy, critic_network=None, clip_epsilon=CLIP, entropy_bonus=False)
        self.loss.set_keys(action=TOKENS, sample_log_prob=LOG_PROBS, advantage="advantage")
        self.optimizer = torch.optim.AdamW(self.loss.parameters(), lr=lr or config.update.lr, weight_decay=0.0)
        self.policy, self.steps, self.decisions = policy, steps, decisions
        self.buffer = recipe_buffer(config)

    def run(self) -> int:
        """One pass over the buffer; the number of decisions that went forward and backward."""
        decisions = 0
        for batch in self._minibatches():
            self.loss(batch)["loss_objective"].backward()
            torch.nn.utils.clip_grad_norm_(self.loss.parameters(), GRAD_CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            decisions += len(batch)
        return decisions

    def _minibatches(self) -> Iterator[TensorDictBase]:
        size = self.decisions if self.steps is None else -(-len(self.buffer) // self.steps)
        while len(self.buffer):
            yield self.buffer.sample(min(size, len(self.buffer)))


class RecipePeer:
    """The recipe end to end: one wave of groups, each environment an episode, then one pass.

    Args:
        policy: Trained in place.
        config: Groups, their size and the learning rate.
        env: Vector of chunked environments, one for each rollout of a wave.
        deal: Gives the next training states.
        **options: Of :class:`RecipeUpdate`.
    """

    def __init__(
        self,
        policy: VLAWrapperBase,
        config: Config,
        env: VectorEnv,
        deal: Callable[[int], Tensor],
        **options: Any,
    ) -> None:
        self.policy, self.config, self.chunks = policy, config, 0
        self.env = BatchedToy(env, lambda rollouts: deal(config.groups).repeat_interleave(config.group_size))
        self.learner = RecipeUpdate(policy, config, **options)
        self.update: Callable[[], int] = self.learner.run
        self.waves = 0

    def advance(self) -> int:
        """Collect, store, update; environment steps done."""
        groups, size = self.config.groups, self.config.group_size
        before = self.env.steps
        with torch.no_grad():
            rollout = self.env.rollout(
                self.config.env.slots, self.learner.policy, break_when_any_done=False, break_when_all_done=True
            )
        group = (self.waves * groups + torch.arange(groups)).repeat_interleave(size)
        rollout.set(GROUP, group.unsqueeze(-1).expand(rollout.shape))
        self.learner.buffer.extend(executed(rollout))
        self.waves += 1
        self.chunks += self.update()
        return self.env.steps - before
