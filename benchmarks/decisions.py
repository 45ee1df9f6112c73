"""What a decision of OpenVLA-OFT costs by the number of rows that are decided together: the policy's side of a rollout.

    python benchmarks/decisions.py --device cpu                      writes results/decisions-tiny-cpu.csv
    python benchmarks/decisions.py --model 7b --device cuda          writes results/decisions-7b-cuda.csv

A decision is a whole chunk: two towers, the prompt, one forward pass of the language model, tokens drawn and their
log-probs, as a collection of rollouts makes it (``OpenVLAPolicy.acting``). ``adapters`` says where they are: ``True``
beside the frozen weights, ``merged`` into a second copy of them (``policy.openvla.lora.merge``), ``False`` for a model
without any, such as an export. ``enter_ms`` is what a collection takes once for it. Weights are random: time does not
depend on them. Sizes are interleaved after a warm-up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from actor_update import make_batch
from common import card, medians, write_csv
from random_openvla import build_policy
from tensordict import TensorDictBase

from pcm_rl.policies.openvla import OpenVLAPolicy
from pcm_rl.policies.openvla.lora import lora_layers


def decide(policy: OpenVLAPolicy, rows: TensorDictBase) -> None:
    """Tokens and log-probs of ``rows``, back on the host as a collector wants them."""
    with torch.no_grad():
        policy(rows.select(*policy.in_keys))["vla_action", "log_probs"].cpu()


def wait(policy: OpenVLAPolicy) -> None:
    """Until the card is done."""
    if policy.mean.is_cuda:
        torch.cuda.synchronize()


def without_adapters(policy: OpenVLAPolicy) -> None:
    """Put the frozen layers back in the adapters' place."""
    for name, layer in lora_layers(policy.model).items():
        parent, _, last = name.rpartition(".")
        setattr(policy.model.get_submodule(parent), last, layer.base_layer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", choices=["tiny", "7b"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", default="1,2,4,8,16,32,64")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(options.model, Path(folder) / "checkpoint", dtype, options.device)
    batch = make_batch(2, policy.checkpoint.sizes.image_size)
    sizes = [int(number) for number in options.rows.split(",")]
    table = []
    for adapters in ("True", "merged", "False"):
        if adapters == "False":
            without_adapters(policy)
            policy.model.adapters = []
        policy.merge = adapters == "merged"
        wait(policy)
        start = time.perf_counter()
        with policy.acting():
            wait(policy)
            enter_s = time.perf_counter() - start
            seconds = medians(
                {str(number): lambda n=number: decide(policy, batch[:n]) for number in sizes}, options.repeats
            )
        for number, value in seconds.items():
            table.append(
                {
                    "model": options.model,
                    "device": card(options.device),
                    "adapters": adapters,
                    "rows": number,
                    "decision_ms": round(value * 1e3, 2),
                    "ms_a_row": round(value * 1e3 / int(number), 2),
                    "enter_ms": round(enter_s * 1e3, 2),
                }
            )
            print(table[-1], flush=True)
    write_csv(f"decisions-{options.model}-{options.device.split(':')[0]}", table)


if __name__ == "__main__":
    main()
