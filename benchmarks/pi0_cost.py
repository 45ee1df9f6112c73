"""What an update and a decision of the true pi0 cost, counted on a simulated GPU without numbers.

    python benchmarks/pi0_cost.py         writes results/pi0_cost.csv and pi0_cost-updates.csv

The model is ``PI0ForConditionalGeneration`` of ``transformers`` with the sizes of its default configuration, in
bfloat16 and without memory (``tests/fake_cuda.py`` with ``meta=True``). **Everything here is counted, nothing is
measured.** A chunk is two images of 224 pixels, a prompt of 48 tokens and one denoising step of 50 x 32 numbers: what
a decision records. FLOP are those of products and of attention. Bytes are those of the tensors that autograd keeps,
each storage once, without parameters; the peak of the backward pass is beside parameters and their gradients.

``train`` says what gets a gradient: ``expert`` is all but the VLM, which then runs without a gradient; ``lora`` is
adapters of rank 32 on all linear layers of both; ``all`` is every weight. With ``recorded`` the prefix's keys and
values were kept at acting and are not computed again.

The updates are those of ``actor_update.py``: 80 rollouts, half of them successes of 18 chunks and half failures of 64.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from actor_update import BUDGET, SUCCESS_CHUNKS
from common import CHUNKS, write_csv
from rehearsal import Roofline

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fake_cuda import fake_cuda
from peft import LoraConfig, inject_adapter_in_model
from transformers import PI0Config, PI0ForConditionalGeneration

TRAJECTORIES, CRITIC_BUDGET = 80, 4
TRAIN = ("expert", "lora", "all")
RANK = 32
LINEAR = r".*\.(q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2)"


@dataclass(frozen=True)
class Inputs:
    """What a batch of chunks brings; ``[M, cameras, 3, 224, 224]`` and so on."""

    pixels: torch.Tensor
    cameras: torch.Tensor
    ids: torch.Tensor
    keep: torch.Tensor
    state: torch.Tensor
    x: torch.Tensor
    time: torch.Tensor


def make_model(train: str) -> PI0ForConditionalGeneration:
    """The model on the simulated device, with what is trained requiring a gradient, which has its memory already."""
    with torch.device("meta"):
        model = PI0ForConditionalGeneration(PI0Config()).requires_grad_(train != "lora")
        if train == "lora":
            inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEAR), model)
        else:
            model.model.vlm.requires_grad_(train == "all")
    model.model.dit.get_input_embeddings().requires_grad_(False)  # the expert reads no words
    model = model.to(torch.bfloat16).to_empty(device="cuda").eval()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    return model


def make_inputs(model: PI0ForConditionalGeneration, rows: int, cameras: int, text: int) -> Inputs:
    config = model.config
    vision = config.vlm_config.vision_config
    image_ids = cameras * (vision.image_size // vision.patch_size) ** 2
    like = {"dtype": torch.bfloat16, "device": "cuda"}
    return Inputs(
        torch.empty(rows, cameras, 3, vision.image_size, vision.image_size, **like),
        torch.ones(rows, cameras, dtype=torch.bool, device="cuda"),
        torch.ones(rows, image_ids + text, dtype=torch.int64, device="cuda"),
        torch.ones(rows, image_ids + text, dtype=torch.int64, device="cuda"),
        torch.empty(rows, config.max_state_dim, **like),
        torch.empty(rows, config.chunk_size, config.max_action_dim, **like),
        torch.empty(rows, device="cuda"),
    )


def prefix(model: PI0ForConditionalGeneration, inputs: Inputs, *, gradient: bool) -> Any:
    """Keys and values of images and text, as ``sample_actions`` computes them."""
    with torch.set_grad_enabled(gradient):
        embeds = model.model.embed_prefix(inputs.ids, inputs.pixels, inputs.cameras)
        return model.model.vlm(
            inputs_embeds=embeds,
            attention_mask=inputs.keep,
            position_ids=inputs.keep.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(embeds)[:, :, 0],
            use_cache=True,
        ).cache


def velocity(model: PI0ForConditionalGeneration, inputs: Inputs, cache: Any) -> torch.Tensor:
    """One pass of the expert."""
    return model(
        state=inputs.state, noise=inputs.x, timestep=inputs.time, attention_mask=inputs.keep, cache=cache
    ).logits


def counted(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and its FLOP."""
    with Roofline() as line:
        out = run()
    return out, line.flop


def count(train: str, rows: int, cameras: int, text: int) -> dict[str, object]:
    """FLOP and bytes of a chunk, forward and backward, and of a decision."""
    with fake_cuda(meta=True):
        model = make_model(train)
        inputs = make_inputs(model, rows, cameras, text)
        parameters = list(model.parameters())
        start = torch.cuda.memory_allocated()
        cache, there = counted(functools.partial(prefix, model, inputs, gradient=train != "expert"))
        recorded = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
        out, expert = counted(functools.partial(velocity, model, inputs, cache))
        del cache  # what autograd needs of it stays
        kept = torch.cuda.memory_allocated() - start
        torch.cuda.reset_peak_memory_stats()
        _, back = counted(lambda: out.float().square().sum().backward())
        peak = torch.cuda.max_memory_allocated() - start
    steps = model.config.num_inference_steps
    tera = {"prefix": there, "expert": expert, "backward": back, "decision": there + steps * expert}
    return {
        "train": train,
        "rows": rows,
        "cameras": cameras,
        "prompt_tokens": text,
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        **{f"tflop_{name}": round(flop / rows / 1e12, 3) for name, flop in tera.items()},
        "tflop_chunk": round((there + expert + back) / rows / 1e12, 3),
        "tflop_chunk_recorded": round((expert + back) / rows / 1e12, 3) if train == "expert" else "",
        "kept_gb_a_chunk": round(kept / rows / 1e9, 3),
        "peak_gb_a_chunk": round(peak / rows / 1e9, 3),
        "recorded_prefix_mb": round(recorded / rows / 1e6, 2),
    }


def updates(chunks: list[dict[str, Any]]) -> list[dict[str, object]]:
    """FLOP of whole updates, and of the decisions that were made for them."""
    successes = TRAJECTORIES // 2
    valid = successes * SUCCESS_CHUNKS + (TRAJECTORIES - successes) * CHUNKS
    sizes = {
        "full-padded": TRAJECTORIES * CHUNKS,
        "full-valid": valid,
        "pcm": TRAJECTORIES * BUDGET,
        "top-critic": TRAJECTORIES * CRITIC_BUDGET,
    }
    table: list[dict[str, object]] = []
    for row in chunks:
        for recorded in (False, True) if row["train"] == "expert" else (False,):
            each = row["tflop_chunk_recorded" if recorded else "tflop_chunk"]
            decisions = valid * row["tflop_decision"]
            for method, number in sizes.items():
                table.append(
                    {
                        "train": row["train"],
                        "recorded": recorded,
                        "method": method,
                        "chunks": number,
                        "tflop_update": round(number * each, 1),
                        "tflop_decisions": round(decisions, 1),
                        "of_full_valid": round(number / valid, 3),
                        "of_full_valid_with_decisions": round(
                            (decisions + number * each) / (decisions + valid * each), 3
                        ),
                    }
                )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--text", type=int, default=48, help="tokens of the prompt, padding included")
    options = parser.parse_args()
    chunks = [count(train, options.rows, options.cameras, options.text) for train in TRAIN]
    write_csv("pi0_cost", chunks)
    write_csv("pi0_cost-updates", updates(chunks))


if __name__ == "__main__":
    main()
