"""What an update costs on RLinf's padded batch, and on the rows of it that count; one thread, in one run.

    python benchmarks/rlinf_update.py [--repeats N]

writes ``results/rlinf_update.csv``. RLinf itself needs a GPU, so this is a stand-in for ``run_training`` of its
embodied actor, written after rlinf 0.3.0: all decisions flattened and shuffled, micro-batches of one size, the clipped
loss with ``loss_mask`` and ``loss_mask_sum``, one optimiser step. The same loop runs on all batches; only the batch
differs. The policy is the toy's MLP.

A batch has the sizes of its LIBERO-10 recipe: 128 groups of 8 episodes, up to 64 decisions of 8 steps. A success ends
after 20 to 36 decisions, a failure never; groups with one outcome are masked, as ``filter_rewards`` does. FLOPs are
counted by torch's ``FlopCounterMode``; seconds are processor time.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import BINS, DIMENSIONS, LENGTH, STATE, medians, write_csv
from tensordict import TensorDict
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pcm_rl import group_advantage
from pcm_rl.algos import LabelPhases, PCMSampler
from pcm_rl.algos.rlinf_batch import rlinf_batch, rlinf_rows
from pcm_rl.algos.shares import choose_rows
from pcm_rl.policies import StateTokenPolicy

GROUPS, GROUP_SIZE, SLOTS, MICRO, CLIP = 128, 8, 64, 128, (0.2, 0.28)
ENVS, LONGEST = GROUPS * GROUP_SIZE, SLOTS * LENGTH
CHOICES = {"counted rows": ("none", 12), "pcm, B = 12": ("pcm", 12), "top-advantage, B = 8": ("top-advantage", 8)}


def rollout(success_rate: float, seed: int = 0) -> dict[str, Any]:
    """What the actor holds after ``compute_advantages_and_returns``."""
    generator = torch.Generator().manual_seed(seed)
    won = torch.rand(ENVS, generator=generator) < success_rate
    ends = torch.where(won, torch.randint(20 * LENGTH, 36 * LENGTH + 1, (ENVS,), generator=generator), LONGEST)
    steps = torch.arange(LONGEST).view(SLOTS, 1, LENGTH)
    executed = steps < ends.view(1, -1, 1)
    dones = torch.zeros(SLOTS + 1, ENVS, LENGTH, dtype=torch.bool)
    dones[1:] = steps == (ends - 1).view(1, -1, 1)
    credit = group_advantage(won, torch.arange(ENVS) // GROUP_SIZE)
    actions = torch.rand(SLOTS, ENVS, LENGTH, DIMENSIONS, generator=generator) * 2 - 1
    actions[..., -1] = torch.where((torch.arange(SLOTS) % 32 > 8).view(-1, 1, 1), 1.0, -1.0)
    return {
        "prev_logprobs": torch.full((SLOTS, ENVS, LENGTH * DIMENSIONS), -2.8),
        "advantages": credit.view(1, -1, 1) * executed,
        "loss_mask": executed & (credit != 0).view(1, -1, 1),
        "loss_mask_sum": executed.sum((0, 2), keepdim=True).expand_as(executed),
        "dones": dones,
        "terminations": dones & won.view(1, -1, 1),
        "actions": actions,
        "forward_inputs": {
            "state": torch.randn(SLOTS, ENVS, STATE, generator=generator),
            "action_tokens": torch.randint(BINS, (SLOTS, ENVS, LENGTH, DIMENSIONS), generator=generator),
        },
    }


def update(policy: StateTokenPolicy, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> None:
    """One optimiser step on all rows of ``batch [T, B, ...]``."""
    inputs = batch["forward_inputs"]
    columns = (inputs["state"], inputs["action_tokens"], *(batch[key] for key in _TRAINED))
    flat = [column.flatten(0, 1) for column in columns]
    order = torch.randperm(len(flat[0]), generator=torch.Generator().manual_seed(0))
    for rows in order.split(MICRO):
        state, tokens, *rest = (column[rows] for column in flat)
        log_prob = policy.get_dist(TensorDict({"observation": {"state": state}}, [len(rows)])).log_prob(tokens)
        (masked_loss(log_prob, *rest) * (len(rows) / len(order))).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


_TRAINED = ("prev_logprobs", "advantages", "loss_mask", "loss_mask_sum")


def masked_loss(log_prob: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, mask_sum: Tensor) -> Tensor:
    """Its loss of a micro-batch with ``loss_mask_sum``: masked tokens are 0, and count in the mean."""
    mask, advantages = mask.unsqueeze(-1), advantages.unsqueeze(-1)
    ratio = torch.where(mask, (log_prob - old.view_as(log_prob)).exp(), 0.0)
    loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP[0], 1 + CLIP[1]))
    return (loss / (mask_sum.unsqueeze(-1) / LONGEST) * mask).mean()


def chosen(batch: dict[str, Any], selection: str, budget: int) -> dict[str, Any]:
    """The batch that the same loop gets instead."""
    rows = rlinf_rows(batch, group_size=GROUP_SIZE, max_episode_steps=LONGEST, action_dim=DIMENSIONS)
    kept = choose_rows(LabelPhases()(rows), PCMSampler(budget, selection=selection))
    return rlinf_batch(kept, max_episode_steps=LONGEST, multiple_of=MICRO)


def measure(success_rate: float, repeats: int) -> list[dict[str, object]]:
    torch.manual_seed(0)
    policy = StateTokenPolicy(STATE)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0)
    whole = rollout(success_rate)
    batches = {"padded": whole} | {name: chosen(whole, *choice) for name, choice in CHOICES.items()}
    seconds = medians(
        {name: (lambda batch=batch: update(policy, optimizer, batch)) for name, batch in batches.items()}
        | {f"choose {name}": (lambda choice=choice: chosen(whole, *choice)) for name, choice in CHOICES.items()},
        repeats,
        clock=time.process_time,
    )
    out = []
    for name, batch in batches.items():
        with FlopCounterMode(display=False) as counter:
            update(policy, optimizer, batch)
        rows, flops = batch["prev_logprobs"].shape[:2].numel(), counter.get_total_flops()
        row = {"success": success_rate, "batch": name, "rows": rows, "flops": flops}
        row["seconds"] = round(seconds[name], 3)
        row["seconds_of_choosing"] = round(seconds.get(f"choose {name}", 0.0), 3)
        out.append(row)
    for row in out:
        for key in ("rows", "flops", "seconds"):
            row[f"{key}_of_padded_over_this"] = round(out[0][key] / row[key], 2)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for success_rate in (0.5, 0.9) for row in measure(success_rate, options.repeats)]
    write_csv("rlinf_update", rows)


if __name__ == "__main__":
    main()
