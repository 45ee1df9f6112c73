"""What the 7B's forward and backward pass would launch and keep on a GPU, counted on a simulated one without numbers.

    python benchmarks/rehearsal.py                writes results/rehearsal.csv and rehearsal-host.csv

The model has its true sizes and no memory (``tests/fake_cuda.py`` with ``meta=True``). Operations that only look at a
tensor in another way (views) launch nothing and are not counted. Bytes are those of the tensors that autograd keeps,
each storage once, without parameters.

``ms_...`` and ``share_of_peak`` are estimates, not measurements: each operation takes the longest of its products at
70 % of an H100's 989 TFLOP/s, of the bytes that it reads and writes at 75 % of its 3.35 TB/s, and of 5 us. The share
counts useful products, those of a forward and a backward pass without recomputation.

``rehearsal-host.csv`` has what the host spends on a forward pass: all blocks of the 7B, so narrow that the numbers cost
next to nothing, on one core of a CPU. The processor time is the least of ``--repeats`` passes, since other work on the
machine adds to it and nothing takes from it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import in_place_flops  # noqa: F401  counts products in place
import torch
from common import write_csv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fake_cuda import fake_cuda

from pcm_rl.policies.openvla import add_lora
from pcm_rl.policies.openvla.network.adapter import merged_adapters, ready_adapters
from pcm_rl.policies.openvla.network.model import OpenVLA
from pcm_rl.policies.openvla.sizes import PUBLISHED_TOWERS, ModelSizes

PROMPT_IDS = 34  # of "pick up the alphabet soup and place it in the basket" under Llama's tokenizer, about
FREE = {"view", "_unsafe_view", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice", "select",
        "split", "split_with_sizes", "chunk", "unbind", "detach", "alias", "as_strided", "reshape", "empty",
        "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh", "_reshape_alias"}  # fmt: skip

PEAK, BANDWIDTH = 989e12, 3.35e12  # FLOP/s in bfloat16 and bytes/s of an H100 SXM, by its data sheet
OF_PEAK, OF_BANDWIDTH, LAUNCH = 0.70, 0.75, 5e-6  # shares that large operations reach, and seconds of a small one


class Roofline(TorchDispatchMode):
    """Adds up what each operation would take."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.flop = 0.0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in FREE:
            counter = flop_registry.get(func.overloadpacket)
            flop = counter(*args, **(kwargs or {}), out_val=out) if counter else 0.0
            tensors = {id(x): x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
            moved = sum(x.numel() * x.element_size() for x in tensors.values())
            self.seconds += max(flop / (OF_PEAK * PEAK), moved / (OF_BANDWIDTH * BANDWIDTH), LAUNCH)
            self.flop += flop
        return out


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
        with Roofline() as there, torch.set_grad_enabled(adapters), ready_adapters(model.adapters, torch.bfloat16):
            out = model(model.patch_features(pixels), prompt.to("cuda"), length)
        forward = collections.Counter(log.ops)
        kept = torch.cuda.memory_allocated() - start
        log.clear()
        torch.cuda.reset_peak_memory_stats()
        with Roofline() as back:
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
        "ms_forward_a_row": round(1e3 * there.seconds / rows, 2),
        "ms_backward_a_row": round(1e3 * back.seconds / rows, 2),
        "tflop_a_row": round((there.flop + back.flop) / rows / 1e12, 2),
        "most_forward": " ".join(f"{name}:{n}" for name, n in forward.most_common(24) if name not in FREE),
        "most_backward": " ".join(f"{name}:{n}" for name, n in backward.most_common(24) if name not in FREE),
    }


def launched(ops: collections.Counter[str]) -> int:
    """Kernels, about: operations that are no views; one that works on a list of tensors counts as one."""
    return sum(number for name, number in ops.items() if name not in FREE)


def host(repeats: int) -> list[dict[str, object]]:
    """Milliseconds of the host for a forward pass of one row."""
    sizes = ModelSizes(PUBLISHED_TOWERS["dinosiglip-vit-so-224px"])
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    towers = tuple(replace(tower, width=16, heads=2, mlp=16) for tower in sizes.towers)
    language = replace(sizes.language, **narrow, vocab_size=300)
    sizes = replace(sizes, towers=towers, language=language, image_size=28, action_bins=8)
    model = OpenVLA(sizes, action_tokens=2).requires_grad_(False)
    pixels, prompt, length = torch.zeros(1, 6, 28, 28), torch.ones(1, 3, dtype=torch.int64), torch.tensor([3])

    def measured(name: str, acting: Any, each: Any, *, grad: bool) -> dict[str, object]:
        seconds = []
        with acting:
            for _ in range(repeats + 3):
                started = time.process_time()
                with torch.set_grad_enabled(grad), each():
                    model(model.patch_features(pixels), prompt, length)
                seconds.append(time.process_time() - started)
        return {"forward": name, "layers": len(model.adapters), "ms": round(1e3 * min(seconds), 1)}

    nothing = contextlib.nullcontext
    table = [measured("decision, no adapters", nothing(), nothing, grad=False)]
    add_lora(model, rank=2, alpha=2)
    groups, dtype = model.adapters, torch.float32
    table.append(measured("decision", ready_adapters(groups, dtype), nothing, grad=False))
    table.append(measured("decision, merged", merged_adapters(groups), nothing, grad=False))
    table.append(measured("update", nothing(), lambda: ready_adapters(groups, dtype), grad=True))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    table: list[dict[str, Any]] = [
        count(options.rows, checkpointing=checkpointing, adapters=adapters)
        for adapters, checkpointing in ((True, False), (True, True), (False, False))
    ]
    useful: dict[object, Any] = {row["adapters"]: row["tflop_a_row"] for row in table if not row["checkpointing"]}
    for row in table:
        seconds = 1e-3 * (row["ms_forward_a_row"] + row["ms_backward_a_row"])
        row["share_of_peak"] = round(useful[row["adapters"]] * 1e12 / seconds / PEAK, 3)
    write_csv("rehearsal", table)
    torch.set_num_threads(1)
    write_csv("rehearsal-host", host(options.repeats))


if __name__ == "__main__":
    main()
