"""RLinf's embodied actor on the rows that count only, and with chunk selection.

    python examples/rlinf_actor.py

``Actor`` stands in for ``EmbodiedFSDPActor`` of rlinf 0.3.0, which needs a GPU and Ray: its batch, its shuffle, its
minibatches and its loss, on random numbers. With rlinf installed the loss is RLinf's own. ``TrimmedActor`` is what you
write: derive it from RLinf's actor instead, and take the numbers from ``self.cfg``.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from pcm_rl import group_advantage
from pcm_rl.algos import LabelPhases, PCMSampler
from pcm_rl.algos.rlinf_batch import rlinf_batch, rlinf_rows
from pcm_rl.algos.shares import choose_rows
from pcm_rl.policies import StateTokenPolicy

GROUPS, GROUP_SIZE, SLOTS, LENGTH, DIMS, STATE, BINS = 4, 8, 20, 8, 7, 26, 16
MICRO_BATCH, MAX_STEPS, CLIP = 32, SLOTS * LENGTH, (0.2, 0.28)

try:
    from rlinf.algorithms.registry import policy_loss
except ImportError:
    policy_loss = None


class Actor:
    """What RLinf's actor holds before ``run_training``, and what it does then."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = StateTokenPolicy(STATE, DIMS, LENGTH, width=32, num_bins=BINS)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        envs = GROUPS * GROUP_SIZE
        won = torch.rand(envs) < 0.6
        ends = torch.where(won, torch.randint(40, 100, (envs,)), MAX_STEPS)  # steps until the end of each episode
        steps = torch.arange(MAX_STEPS).view(SLOTS, 1, LENGTH)
        executed = steps < ends.view(1, -1, 1)
        ended = torch.cat([torch.zeros(1, envs, LENGTH, dtype=torch.bool), steps == ends.view(1, -1, 1) - 1])
        credit = group_advantage(won, torch.arange(envs) // GROUP_SIZE)
        tokens = torch.randint(BINS, (SLOTS, envs, LENGTH, DIMS))
        self.rollout_batch: dict[str, Any] = {
            "prev_logprobs": torch.full((SLOTS, envs, LENGTH * DIMS), -2.77),
            "advantages": credit.view(1, -1, 1) * executed,
            "loss_mask": executed & (credit != 0).view(1, -1, 1),
            "loss_mask_sum": executed.sum((0, 2), keepdim=True).expand_as(executed),
            "dones": ended,
            "terminations": ended & won.view(1, -1, 1),
            "forward_inputs": {"state": torch.randn(SLOTS, envs, STATE), "action_tokens": tokens},
        }

    def run_training(self) -> int:
        """One optimiser step on all decisions of the batch, in micro-batches; how many there are."""
        batch = self.rollout_batch
        inputs = batch["forward_inputs"]
        entries = (batch[key] for key in ("prev_logprobs", "advantages", "loss_mask", "loss_mask_sum"))
        columns = [value.flatten(0, 1) for value in (inputs["state"], inputs["action_tokens"], *entries)]
        order = torch.randperm(len(columns[0]))
        for rows in order.split(MICRO_BATCH):
            state, tokens, *rest = (column[rows] for column in columns)
            seen = TensorDict({"observation": {"state": state}}, [len(rows)])
            loss = clipped(self.model.get_dist(seen).log_prob(tokens).flatten(1), *rest)
            (loss * len(rows) / len(order)).backward()
        self.optimizer.step()
        return len(order)


class TrimmedActor(Actor):
    """What you write."""

    def __init__(self, sampler: PCMSampler) -> None:
        super().__init__()
        self.sampler = sampler  # keeps its probabilities from step to step
        self.label = LabelPhases(closed=lambda chunk: chunk[..., -1] > BINS / 2)  # what closes your gripper

    def run_training(self) -> int:
        """The same on what is kept."""
        rows = rlinf_rows(self.rollout_batch, group_size=GROUP_SIZE, max_episode_steps=MAX_STEPS, action_dim=DIMS)
        kept = choose_rows(self.label(rows), self.sampler)
        self.rollout_batch = rlinf_batch(kept, max_episode_steps=MAX_STEPS, multiple_of=MICRO_BATCH)
        return super().run_training()


def clipped(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, mask_sum: Tensor) -> Tensor:
    if policy_loss is not None:
        return policy_loss(
            task_type="embodied", loss_type="actor", logprob_type="token_level", reward_type="action_level",
            single_action_dim=DIMS, logprobs=new, old_logprobs=old, advantages=advantages, loss_mask=mask,
            loss_mask_sum=mask_sum, max_episode_steps=MAX_STEPS, clip_ratio_low=CLIP[0], clip_ratio_high=CLIP[1],
        )[0]  # fmt: skip
    ratio = (new - old).view(-1, LENGTH, DIMS).exp()
    advantages, share = advantages.unsqueeze(-1), (MAX_STEPS * mask / mask_sum).unsqueeze(-1)
    return (torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP[0], 1 + CLIP[1])) * share).mean()


def main() -> dict[str, tuple[int, Tensor]]:
    actors = {
        "all": Actor(),
        "counted": TrimmedActor(PCMSampler(selection="none")),
        "pcm": TrimmedActor(PCMSampler(4)),
    }
    done = {}
    for name, actor in actors.items():
        rows = actor.run_training()
        gradient = torch.cat([parameter.grad.flatten() for parameter in actor.model.parameters()])
        done[name] = rows, gradient
        cosine = torch.nn.functional.cosine_similarity(gradient, done["all"][1], dim=0)
        print(f"{name}: {rows} rows, cosine to the gradient of all {cosine:.4f}")
    return done


if __name__ == "__main__":
    main()
