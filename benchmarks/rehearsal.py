"""What the 7B's forward and backward pass would launch and keep on a GPU, counted on a simulated one without numbers.

    python benchmarks/rehearsal.py                writes results/rehearsal.csv

The model has its true sizes and no memory (``tests/fake_cuda.py`` with ``meta=True``). Operations that only look at a
tensor in another way (views) launch nothing and are not counted. Bytes are those of the tensors that autograd keeps,
each storage once, without parameters.
"""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path

import torch
from common import write_csv

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fake_cuda import fake_cuda

from pcm_rl.policies.openvla import add_lora
from pcm_rl.policies.openvla.network.adapter import ready_adapters
from pcm_rl.policies.openvla.network.model import OpenVLA
from pcm_rl.policies.openvla.sizes import PUBLISHED_TOWERS, ModelSizes

PROMPT_IDS = 34  # of "pick up the alphabet soup and place it in the basket" under Llama's tokenizer, about
FREE = {"view", "_unsafe_view", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice", "select",
        "split", "split_with_sizes", "chunk", "unbind", "detach", "alias", "as_strided", "reshape", "empty",
        "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh", "_reshape_alias"}  # fmt: skip


def count(rows: int, *, checkpointing: bool, adapters: bool) -> dict[str, object]:
    """Kernels and bytes of one forward and backward pass."""
    sizes = ModelSizes(PUBLISHED_TOWERS["dinosiglip-vit-so-224px"])
    with fake_cuda(meta=True) as log:
        with torch.device("meta"):
            model = OpenVLA(sizes, action_tokens=56).requires_grad_(False)
        model = model.to(torch.bfloat16).to_empty(device="cuda")
        if adapters:
            add_lora(model)
        model.set_checkpointing(checkpointing)
        pixels = torch.empty(rows, 6, sizes.image_size, sizes.image_size, dtype=torch.bfloat16, device="cuda")
        prompt = torch.ones(rows, PROMPT_IDS, dtype=torch.int64)
        length = torch.full((rows,), PROMPT_IDS)
        start = torch.cuda.memory_allocated()
        log.clear()
        with torch.set_grad_enabled(adapters), ready_adapters(model.adapters, torch.bfloat16):
            out = model(model.patch_features(pixels), prompt.to("cuda"), length)
        forward = collections.Counter(log.ops)
        kept = torch.cuda.memory_allocated() - start
        log.clear()
        torch.cuda.reset_peak_memory_stats()
        if adapters:
            out.sum().backward()
        backward = collections.Counter(log.ops)
        peak = torch.cuda.max_memory_allocated() - start
    return {
        "rows": rows,
        "adapters": adapters,
        "checkpointing": checkpointing,
        "kernels_forward": launched(forward),
        "kernels_backward": launched(backward),
        "kept_gb_a_row": round(kept / rows / 1e9, 3),
        "peak_gb_a_row": round(peak / rows / 1e9, 3),
        "most_forward": " ".join(f"{name}:{n}" for name, n in forward.most_common(24) if name not in FREE),
        "most_backward": " ".join(f"{name}:{n}" for name, n in backward.most_common(24) if name not in FREE),
    }


def launched(ops: collections.Counter[str]) -> int:
    """Kernels, about: operations that are no views; one that works on a list of tensors counts as one."""
    return sum(number for name, number in ops.items() if name not in FREE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    options = parser.parse_args()
    table = [
        count(options.rows, checkpointing=checkpointing, adapters=adapters)
        for adapters, checkpointing in ((True, False), (True, True), (False, False))
    ]
    write_csv("rehearsal", table)


if __name__ == "__main__":
    main()
