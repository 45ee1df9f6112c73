"""Where the time of a micro-batch goes on a GPU: milliseconds, kernels and memory of a forward and backward pass.

    python benchmarks/kernels.py                  writes results/kernels-7b-cuda.csv
    python benchmarks/kernels.py --checkpointing  the same with recomputation, -checkpointing.csv

The 7B (``--model tiny``: the tiny model) with random weights and adapters of rank 32 on all linear layers. Times are of
whole passes without the profiler; the share of each kernel is from a pass under it.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from actor_update import make_batch
from common import write_csv
from random_openvla import build_policy
from torch.profiler import ProfilerActivity, profile

from pcm_rl.episodes import TOKENS


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Mean of some passes after two that are not counted."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats * 1e3


def kernels_of(run: Callable[[], object]) -> list[Any]:
    """What the profiler has seen on the card."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        run()
        torch.cuda.synchronize()
    return [event for event in found.events() if event.device_type.name == "CUDA"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="7b", choices=["tiny", "7b"])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--unprofiled", action="store_true", help="no kernels: a simulated GPU has none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(options.model, Path(folder) / "checkpoint", torch.bfloat16, "cuda")
    policy.set_checkpointing(options.checkpointing)
    rows = make_batch(2, policy.checkpoint.sizes.image_size)[: options.rows].to("cuda")
    inputs = rows.select(*policy.in_keys)

    def forward() -> torch.Tensor:
        return policy.get_dist(inputs).log_prob(rows[TOKENS]).mean()

    def update() -> None:
        forward().backward()

    update_ms = milliseconds(update, options.repeats)
    with torch.no_grad():
        decision_ms = milliseconds(forward, options.repeats)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = forward()
    kept = torch.cuda.memory_allocated() - before
    loss.backward()
    peak = torch.cuda.max_memory_allocated() - before
    kernels = [] if options.unprofiled else kernels_of(update)
    total: collections.Counter[str] = collections.Counter()
    number = collections.Counter(event.name for event in kernels)
    for event in kernels:
        total[event.name] += event.device_time / 1e3
    rest = {"rows": options.rows, "device": torch.cuda.get_device_name(), "checkpointing": options.checkpointing}
    table: list[dict[str, object]] = [
        {**rest, "what": "forward and backward", "ms": round(update_ms, 2), "kernels": len(kernels)},
        {**rest, "what": "forward without gradient", "ms": round(decision_ms, 2), "kernels": ""},
        {**rest, "what": "busy", "ms": round(sum(total.values()), 2), "kernels": len(kernels)},
        {**rest, "what": "kept GB a row", "ms": round(kept / options.rows / 1e9, 3), "kernels": ""},
        {**rest, "what": "peak GB a row", "ms": round(peak / options.rows / 1e9, 3), "kernels": ""},
    ]
    for name, value in total.most_common(24):
        table.append({**rest, "what": name[:120], "ms": round(value, 2), "kernels": number[name]})
    write_csv(f"kernels-{options.model}-cuda{'-checkpointing' if options.checkpointing else ''}", table)


if __name__ == "__main__":
    main()
