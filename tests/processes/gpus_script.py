"""What each of two processes with a GPU each does, on simulated GPUs: ``gpus_script.py CHECKPOINT OUT``."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from fake_cuda import fake_cuda
from tensordict import NonTensorStack, TensorDict

from pcm_rl.config import load_config
from pcm_rl.policies.openvla import OpenVLAPolicy, add_lora, open_checkpoint
from pcm_rl.policies.openvla.attention_check import check_bidirectional
from pcm_rl.processes.launch import egl_line, joined

torch.set_num_threads(1)


def rows(size: int) -> TensorDict:
    """Two observations."""
    image = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    batch = TensorDict({("observation", "image"): image}, batch_size=[2])
    batch["language_instruction"] = NonTensorStack("lift it", "go")
    return batch


def main(checkpoint: str, out: str) -> None:
    """The weights of ``device=cuda``, a decision, and its log-probs once more."""
    config = load_config(None, ["device=cuda", "groups=2", "eval_episodes=2"])
    with joined(config) as ranks:
        policy = OpenVLAPolicy(open_checkpoint(checkpoint), 2, device=config.device)
        add_lora(policy.model, rank=2)
        check_bidirectional(policy)
        batch = rows(policy.checkpoint.sizes.image_size).to(config.device)
        with torch.no_grad():
            policy(batch)
            again = policy.get_dist(batch.select(*policy.in_keys)).log_prob(batch["vla_action", "tokens"])
        os.environ["MUJOCO_GL"] = "egl"  # not before what imports MuJoCo
        found = {
            "devices": sorted({str(tensor.device) for tensor in (*policy.parameters(), policy.mean, policy.std)}),
            "memory": [torch.cuda.memory_allocated(i) > 0 for i in range(2)],
            "distance": float((again - batch["vla_action", "log_probs"]).abs().max()),
            "egl": os.environ["MUJOCO_EGL_DEVICE_ID"],
            "line": egl_line(ranks),
        }
        (Path(out) / f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    gloo = functools.partial(dist.init_process_group, "gloo")  # there is no NCCL
    connect = mock.patch.object(dist, "init_process_group", lambda backend, **others: gloo(**others))
    with fake_cuda(devices=2), connect:
        main(*sys.argv[1:])
