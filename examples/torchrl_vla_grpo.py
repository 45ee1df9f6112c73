"""TorchRL's recipe ``vla_grpo`` with chunk selection: its parts as they are, and one ``append_transform`` more.

    python examples/torchrl_vla_grpo.py

The recipe (``sota-implementations/vla_grpo`` of pytorch/rl; its scripts are not in the wheel) is put together from the
package's own parts with its settings for the toy task: environment, policy, collector, advantage, buffer, loss. Here
they run in one process. ``ClipPPOLoss`` has no weights: the kept rows count alike, as all rows do without a choice.
"""

from __future__ import annotations

import functools
import logging

import torch
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.vla import ACTION_TOKENS_KEY, UniformActionTokenizer
from torchrl.envs import (
    ActionTokenizerTransform,
    Compose,
    EnvBase,
    MultiAction,
    StepCounter,
    SuccessReward,
    ToyVLAEnv,
    TransformedEnv,
)
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules.vla import TinyVLA
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.llm import MCAdvantage

from pcm_rl.algos import EpisodeKeys, LabelPhases, PCMSampler
from pcm_rl.labellers import label_by_time

GROUP_SIZE, DECISIONS = 4, 6  # rollouts of an initial state, decisions of an episode at most
TOKENIZER = UniformActionTokenizer(64, low=-1.0, high=1.0)
logging.getLogger("torchrl").setLevel(logging.WARNING)


def make_env(seed: int, group_repeats: int | None = GROUP_SIZE) -> EnvBase:
    toy = ToyVLAEnv(
        action_dim=2, state_dim=4, success_steps=2, success_tol=0.35, group_repeats=group_repeats, seed=seed
    )
    chunks = (MultiAction(stack_rewards=False), ActionTokenizerTransform(TOKENIZER))
    return TransformedEnv(toy, Compose(*chunks, SuccessReward(), StepCounter(max_steps=DECISIONS)))


def make_buffer(groups: int, budget: int | None) -> TensorDictReplayBuffer:
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(groups * GROUP_SIZE * DECISIONS), batch_size=64, consume_after_n_samples=1
    )
    if budget is not None:  # rows pass from the last part to the first: ids and chunks, phases, choice
        keys = EpisodeKeys(ACTION_TOKENS_KEY, decode=TOKENIZER.decode)
        label = LabelPhases(functools.partial(label_by_time, chunks=1))  # nothing is grasped here
        buffer.append_transform(Compose(PCMSampler(budget), label, keys))
    buffer.append_transform(
        MCAdvantage(
            grpo_size=GROUP_SIZE, prompt_key="group_id", trajectory_return="sum", keep_return_bounds=(0.05, 0.95)
        )
    )
    return buffer


def update(buffer: TensorDictReplayBuffer, loss: ClipPPOLoss, optimizer: torch.optim.Optimizer) -> int:
    """One pass over the buffer; the rows that went forward and backward."""
    rows = 0
    while len(buffer):
        batch = buffer.sample()
        loss(batch)["loss_objective"].backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rows += len(batch)
    return rows


@torch.no_grad()
def evaluate(policy: TinyVLA, episodes: int) -> float:
    env = make_env(seed=10_000, group_repeats=None)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        won = [bool(env.rollout(DECISIONS, policy)["next", "success"].any()) for _ in range(episodes)]
    return sum(won) / episodes


def main(
    iterations: int = 10, budget: int | None = 2, *, groups: int = 8, episodes: int = 30, seed: int = 0
) -> tuple[TinyVLA, int, int]:
    torch.manual_seed(seed)
    policy = TinyVLA(
        action_dim=2, chunk_size=4, action_head="tokens", vocab_size=64, hidden_dim=128, log_probs_mode="sequence",
        return_vla_action_container=False,
    )  # fmt: skip
    env = make_env(seed)
    policy(env.reset())  # lazy layers
    collector = Collector(
        env, policy, frames_per_batch=DECISIONS, total_frames=-1, trajs_per_batch=GROUP_SIZE, traj_format="cat",
        auto_register_policy_transforms=False,
    )  # fmt: skip
    buffer = make_buffer(groups, budget)
    loss = ClipPPOLoss(actor_network=policy, critic_network=None, clip_epsilon=(0.2, 0.28), entropy_bonus=False)
    loss.set_keys(action=ACTION_TOKENS_KEY, sample_log_prob=("vla_action", "log_probs"), advantage="advantage")
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-3, weight_decay=0.0)
    collected = trained = 0
    for wave, group in enumerate(collector):
        collected += len(group)
        buffer.extend(group)
        if (wave + 1) % groups == 0:
            trained += update(buffer, loss, optimizer)
        if wave + 1 == iterations * groups:
            break
    collector.shutdown()
    success = f", greedy success {evaluate(policy, episodes):.0%}" if episodes else ""
    print(f"budget {budget}: trained on {trained} of {collected} decisions{success}")
    return policy, trained, collected


if __name__ == "__main__":
    main(budget=None)
    main(budget=2)
