"""SimpleVLA-RL's actor on executed chunks only, and with chunk selection.

    python examples/simplevla_actor.py

``update_policy`` stands in for that of its ``RobDataParallelPPOActor``, which needs a GPU and flash-attn: its batch,
its micro-batches of one trajectory and its loss, on random numbers. The batch is a mapping here; verl's ``DataProto``
is taken as well.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from pcm_rl import group_advantage
from pcm_rl.algos import LabelPhases, PCMSampler
from pcm_rl.algos.shares import choose_rows
from pcm_rl.algos.simplevla_batch import simplevla_batch, simplevla_rows
from pcm_rl.policies import StateTokenPolicy

GROUPS, GROUP_SIZE, SLOTS, LENGTH, DIMS, STATE, BINS = 4, 8, 64, 8, 7, 26, 16
CLIP = (0.2, 0.28)


def collected() -> tuple[dict[str, Tensor], Tensor]:
    """What ``update_policy`` gets, and the number of each trajectory's prompt (``non_tensor_batch["uid"]``)."""
    count, tokens = GROUPS * GROUP_SIZE, LENGTH * DIMS
    complete, group = torch.rand(count) < 0.6, torch.arange(GROUPS).repeat_interleave(GROUP_SIZE)
    finish = torch.where(complete, torch.randint(120, 300, (count,)), SLOTS * LENGTH)
    executed = torch.arange(SLOTS * tokens) < DIMS * finish.unsqueeze(-1)
    batch = {
        "responses": torch.randint(BINS, (count, SLOTS, tokens)),
        "state": torch.randn(count, SLOTS, STATE),  # input_ids, attention_mask and pixel_values of the 7B
        "finish_step": finish,
        "complete": complete,
        "old_log_probs": torch.full((count, SLOTS * tokens), -2.77) * executed,
        "advantages": group_advantage(complete, group).unsqueeze(-1) * executed,
    }
    return batch, group


def update_policy(policy: StateTokenPolicy, batch: dict[str, Tensor]) -> int:
    """The gradient of its objective; the chunks that went forward and backward."""
    count, slots = batch["responses"].shape[:2]
    for i in range(count):
        seen = TensorDict({"observation": {"state": batch["state"][i]}}, [slots])
        new = policy.get_dist(seen).log_prob(batch["responses"][i].view(slots, LENGTH, DIMS)).flatten()
        mask = torch.arange(len(new)) < DIMS * batch["finish_step"][i]
        ratio, advantage = (new - batch["old_log_probs"][i]).exp(), batch["advantages"][i]
        loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP[0], 1 + CLIP[1]))
        ((loss * mask).sum() / mask.sum() / count).backward()
    return count * slots


def main() -> dict[str, tuple[int, Tensor]]:
    torch.manual_seed(0)
    policy = StateTokenPolicy(STATE, DIMS, LENGTH, width=32, num_bins=BINS)
    batch, group = collected()
    label = LabelPhases(closed=lambda chunk: chunk[..., -1] > BINS / 2)  # which tokens close your gripper
    rows = label(simplevla_rows(batch, groups=group))
    batches = {
        "all": batch,
        "executed": simplevla_batch(choose_rows(rows, PCMSampler(selection="none")), slots=8),
        "pcm": simplevla_batch(choose_rows(rows, PCMSampler(12)), slots=8),
    }
    done = {}
    for name, given in batches.items():
        policy.zero_grad()
        chunks = update_policy(policy, given)
        done[name] = chunks, torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
        cosine = torch.nn.functional.cosine_similarity(done[name][1], done["all"][1], dim=0)
        print(f"{name}: {chunks} chunks, cosine to the gradient of all {cosine:.4f}")
    return done


if __name__ == "__main__":
    main()
