"""One GRPO update of OpenVLA-OFT with LoRA, as others do it and as it is done here, on one and the same batch.

    python benchmarks/actor_update.py --device cpu                          writes results/actor_update-tiny-cpu.csv
    python benchmarks/actor_update.py --device cpu --checkpointing          the same, -checkpointing.csv
    python benchmarks/actor_update.py --device cpu --compile                the same, -compiled.csv
    python benchmarks/actor_update.py --model 7b --device cuda              writes results/actor_update-7b-cuda.csv
    python benchmarks/actor_update.py --model 7b --count                    writes results/actor_update-7b-count.csv

Variants:

- ``simplevla-style``: 64 slots a trajectory, padded; old log-probs worked out by a second forward; logits of the whole
  vocabulary at every position, in float32; one more forward for the entropy; micro-batches of one trajectory.
- ``full-padded``, ``full-valid``, ``pcm``: this package's update, with all slots, with the executed chunks, with B of
  them; micro-batches packed across trajectories.
- ``clip-ppo-loss``: TorchRL's ``ClipPPOLoss`` on the executed chunks with the same model and micro-batches. It holds
  the parameters apart from the module, so blocks cannot be computed again in the backward pass: it is left out where
  ``--checkpointing`` is on.

A variant that does not fit into the card's memory is left out and named at the end, with exit status 1.
``--compile`` is ``policy.openvla.compile``; the warm-up compiles.

The batch: groups of ten rollouts, half of them successes of 18 chunks, half failures of 64 (LIBERO's horizon of 512
steps), random images and five instructions of different length. Weights are random: time and memory do not depend on
them. Trials of the variants are interleaved after a warm-up; ratios are of medians within one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import in_place_flops  # noqa: F401  counts products in place
import torch
import torch.nn.functional as F
from common import CHUNKS, card, synthetic_batch, write_csv
from random_openvla import PROMPT_IDS, build_policy, sizes_of
from tensordict import NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchrl.objectives import ClipPPOLoss

from pcm_rl.algos import PCMSampler
from pcm_rl.algos.packing import micro_batches
from pcm_rl.config import Config, UpdateConfig
from pcm_rl.episodes import ADVANTAGE, INSTRUCTION, LOG_PROBS, TOKENS, pad_episodes
from pcm_rl.policies.openvla import OpenVLAPolicy, add_lora
from pcm_rl.policies.openvla.lora import trainable
from pcm_rl.policies.openvla.network.model import OpenVLA
from pcm_rl.policies.openvla.sizes import ModelSizes
from pcm_rl.training.grpo import make_loss, make_optimizer, update_policy
from pcm_rl.training.memory import ActivationMeter

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, FLOP/s
INSTRUCTIONS = (
    "pick up the milk",
    "pick up the alphabet soup and place it in the basket",
    "put the bowl on the plate",
    "open the middle drawer of the cabinet",
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
)
BUDGET, BINS, SUCCESS_CHUNKS = 12, 256, 18


def make_batch(trajectories: int, image_size: int) -> TensorDict:
    """Executed chunks only; see the module's docstring."""
    common.TRAJECTORIES = trajectories
    lengths = torch.where(torch.arange(trajectories) % 2 == 0, SUCCESS_CHUNKS, CHUNKS)
    batch = synthetic_batch(lengths)
    rows, generator = len(batch), torch.Generator().manual_seed(1)
    image = torch.randint(256, (rows, 3, image_size, image_size), generator=generator, dtype=torch.uint8)
    batch = batch.exclude(("observation", "state")).set(("observation", "image"), image)
    batch[TOKENS] = torch.randint(BINS, batch[TOKENS].shape, generator=generator)
    batch[LOG_PROBS] = torch.full(batch[TOKENS].shape, -torch.tensor(float(BINS)).log().item())
    told = [INSTRUCTIONS[group % len(INSTRUCTIONS)] for group in batch["group_id"].tolist()]
    return batch.set(INSTRUCTION, NonTensorStack(*told))


class WholeVocabulary:
    """Logits as a language model gives them: every position, every word, in float32."""

    def __init__(self, policy: OpenVLAPolicy) -> None:
        sizes = policy.checkpoint.sizes
        self.policy, self.first = policy, sizes.first_action_id
        shape = (sizes.language.vocab_size, sizes.language.hidden_size)
        self.head = torch.randn(shape, device=policy.mean.device, dtype=policy.dtype) * 0.02

    def logits(self, rows: TensorDictBase) -> Tensor:
        """``[M, L, D, A]``."""
        policy, model = self.policy, self.policy.model
        with policy.precision():
            features = policy._features(rows)
            prompt, length = policy.prompter.batch(rows[INSTRUCTION])
            embeddings, positions, keep = model.embed(features, prompt.to(features.device), length)
            whole = everywhere(model, embeddings, keep, self.head)
        own = whole.gather(1, positions.unsqueeze(-1).expand(-1, -1, whole.shape[-1]))
        own = own[..., self.first : self.first + BINS]
        return own.unflatten(1, (policy.chunk_size, policy.action_dim)) / policy.temperature


def everywhere(model: OpenVLA, embeddings: Tensor, keep: Tensor | None, head: Tensor) -> Tensor:
    """Logits of every word at every position, ``[M, S, V]`` float32."""
    positions = torch.arange(embeddings.shape[1], device=embeddings.device).expand(len(embeddings), -1)
    return F.linear(model.language_model.model(embeddings, positions, keep), head).float()


def simplevla_style(policy: OpenVLAPolicy, config: Config, padded: TensorDict) -> Callable[[], int]:
    """One pass over trajectories of 64 slots, one micro-batch each, in four optimiser steps."""
    whole = WholeVocabulary(policy)
    loss, optimizer = make_loss(policy, config.update), make_optimizer(policy, config.update)
    usual = policy._action_logits

    def run() -> int:
        policy._action_logits = whole.logits
        try:
            trajectories = padded.split(CHUNKS)
            for step in torch.arange(len(trajectories)).tensor_split(config.update.minibatches):
                optimizer.zero_grad(set_to_none=True)
                for i in step.tolist():
                    one = trajectories[i].to(policy.mean.device)
                    with torch.no_grad():
                        one[LOG_PROBS] = policy.get_dist(one).log_prob(one[TOKENS])
                        policy.get_dist(one).entropy().mean()
                    (loss(one)["loss_objective"] / len(step)).backward()
                torch.nn.utils.clip_grad_norm_(trainable(policy), config.update.grad_clip)
                optimizer.step()
        finally:
            policy._action_logits = usual
        return len(padded)

    return run


def ours(policy: OpenVLAPolicy, config: Config, kept: TensorDict) -> Callable[[], int]:
    loss, optimizer = make_loss(policy, config.update), make_optimizer(policy, config.update)

    def run() -> int:
        update_policy(loss, optimizer, kept, config.update, torch.Generator().manual_seed(0))
        return len(kept)

    return run


def clip_ppo_loss(policy: OpenVLAPolicy, config: Config, valid: TensorDict) -> Callable[[], int]:
    """TorchRL's loss on the executed chunks, in the same minibatches and micro-batches as ours."""
    loss = ClipPPOLoss(
        policy, None, clip_epsilon=(config.update.clip_low, config.update.clip_high), entropy_bonus=False
    )
    loss.set_keys(action=TOKENS, sample_log_prob=LOG_PROBS, advantage=ADVANTAGE)
    parameters = [value for value in loss.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.update.lr, fused=True)
    tokens = policy.row_tokens(valid)

    def run() -> int:
        order = torch.randperm(len(valid), generator=torch.Generator().manual_seed(0))
        for rows in order.tensor_split(config.update.minibatches):
            optimizer.zero_grad(set_to_none=True)
            budget = config.update.micro_tokens
            for micro in micro_batches(rows, micro_rows=None, tokens=tokens, budget=budget):
                piece = valid[micro].to(policy.mean.device)
                piece[ADVANTAGE] = piece[ADVANTAGE].unsqueeze(-1)
                (loss(piece)["loss_objective"] * len(micro) / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.update.grad_clip)
            optimizer.step()
        return len(valid)

    return run


def flops_per_chunk(sizes: ModelSizes, ids: int) -> dict[str, int]:
    """Forward and backward of one chunk, counted on a model without memory: ours, and with the whole vocabulary.

    Args:
        sizes: Of the model.
        ids: Length of the prompt.
    """
    with torch.device("meta"):
        model = OpenVLA(sizes, action_tokens=56).requires_grad_(False)
        pixels = torch.zeros(1, 6, sizes.image_size, sizes.image_size)
        prompt = torch.zeros(1, ids, dtype=torch.int64)
        head = torch.zeros(sizes.language.vocab_size, sizes.language.hidden_size)
    add_lora(model)
    length = torch.tensor([ids])

    def ours() -> Tensor:
        return model(model.patch_features(pixels), prompt, length)

    def whole() -> Tensor:
        embeddings, _, keep = model.embed(model.patch_features(pixels), prompt, length)
        return everywhere(model, embeddings, keep, head)

    counts = {}
    for name, logits in (("ours", ours), ("whole", whole)):
        with FlopCounterMode(display=False) as counter:
            out = logits().sum()
            counts[f"{name}_forward"] = counter.get_total_flops()
            out.backward()
        counts[f"{name}_backward"] = counter.get_total_flops() - counts[f"{name}_forward"]
    return counts


def flops_of_rows(variant: str, sizes: ModelSizes, ids: Tensor, *, checkpointing: bool) -> int:
    """Of an update of rows whose prompts have ``ids [R]`` tokens; what pads a micro-batch is not counted."""
    lengths, rows = ids.unique(return_counts=True)
    counted = zip(lengths.tolist(), rows.tolist(), strict=True)
    return sum(
        flops_of(variant, number, flops_per_chunk(sizes, length), checkpointing=checkpointing)
        for length, number in counted
    )


def prompt_ids(policy: OpenVLAPolicy, rows: TensorDictBase) -> Tensor:
    """Length of each row's prompt, ``[R]`` int64."""
    return torch.tensor([len(policy.prompter.ids(text)) for text in rows.get(INSTRUCTION).tolist()])


def flops_of(variant: str, chunks: int, counts: dict[str, int], *, checkpointing: bool) -> int:
    """Of a whole update of ``chunks`` chunks, by the count of one."""
    name = "whole" if variant == "simplevla-style" else "ours"
    forwards = 3 if variant == "simplevla-style" else 1  # old log-probs, entropy, gradient
    return chunks * ((forwards + checkpointing) * counts[f"{name}_forward"] + counts[f"{name}_backward"])


def measure(policy: OpenVLAPolicy, variants: dict[str, Callable[[], int]], repeats: int) -> dict[str, tuple]:
    """Rows, median seconds and peak activation bytes of each; without those that do not fit into memory."""
    variants = dict(variants)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    rows, kept = {}, {}
    # on a CPU the time of this process, which other work on the machine does not change
    clock = time.perf_counter if policy.mean.is_cuda else time.process_time
    for repeat in range(repeats + 1):
        for name, run in list(variants.items()):
            try:
                with ActivationMeter(policy, enabled=repeat == 0) as meter:
                    start = clock()
                    rows[name] = run()
                    if policy.mean.is_cuda:
                        torch.cuda.synchronize()
                    seconds[name].append(clock() - start)
            except torch.OutOfMemoryError as error:
                print(f"{name}: {error}", flush=True)
                del variants[name]
                policy.zero_grad(set_to_none=True)
                continue
            if not repeat:
                kept[name] = meter.peak
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    return {name: (rows[name], statistics.median(seconds[name][1:]), kept[name]) for name in variants}


def count(name: str, trajectories: int) -> list[dict[str, object]]:
    """Operations of an update by each variant."""
    counts = flops_per_chunk(sizes_of(name), PROMPT_IDS)
    successes = (trajectories + 1) // 2
    chunks = {
        "simplevla-style": trajectories * CHUNKS,
        "full-padded": trajectories * CHUNKS,
        "full-valid": successes * SUCCESS_CHUNKS + (trajectories - successes) * CHUNKS,
        "pcm": trajectories * BUDGET,
    }
    rows: list[dict[str, object]] = []
    for checkpointing in (False, True):
        flops = {one: flops_of(one, number, counts, checkpointing=checkpointing) for one, number in chunks.items()}
        for variant, total in flops.items():
            rows.append(
                {
                    "variant": variant,
                    "model": name,
                    "checkpointing": checkpointing,
                    "trajectories": trajectories,
                    "chunks": chunks[variant],
                    "tflop_per_chunk": round(total / chunks[variant] / 1e12, 3),
                    "tflop": round(total / 1e12, 1),
                    "flop_over_pcm": round(total / flops["pcm"], 2),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", choices=["tiny", "7b"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trajectories", type=int, default=80, help="an even number")
    parser.add_argument("--rows", type=int, default=16, help="rows of the longest prompt in a packed micro-batch")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=3, help="timed, after a warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--count", action="store_true", help="only count operations, also of a 7B without memory for it"
    )
    parser.add_argument("--variants", default="simplevla-style,full-padded,full-valid,clip-ppo-loss,pcm")
    options = parser.parse_args()
    if options.count:
        write_csv(f"actor_update-{options.model}-count", count(options.model, options.trajectories))
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(options.model, Path(folder) / "checkpoint", dtype, options.device)
    policy.model.set_checkpointing(options.checkpointing)
    if options.compile:
        policy.model.compile_blocks()
    valid = make_batch(options.trajectories, policy.checkpoint.sizes.image_size)
    padded = pad_episodes(valid, CHUNKS)
    sampler = PCMSampler(BUDGET)
    start = time.perf_counter()
    kept = sampler(valid)
    select_s = time.perf_counter() - start
    assert len(kept) == options.trajectories * BUDGET, "backward rows must be sum_i min(B, N_i)"
    budget = options.rows * int(policy.row_tokens(valid).max())
    config = dataclasses.replace(Config(), update=UpdateConfig(minibatches=4, micro_tokens=budget, lr=1e-5))
    make: dict[str, Callable[[], Callable[[], int]]] = {
        "simplevla-style": lambda: simplevla_style(policy, config, padded),
        "full-padded": lambda: ours(policy, config, padded),
        "full-valid": lambda: ours(policy, config, valid),
        "clip-ppo-loss": lambda: clip_ppo_loss(policy, config, valid),
        "pcm": lambda: ours(policy, config, kept),
    }
    chosen = [name for name in options.variants.split(",") if not (name == "clip-ppo-loss" and options.checkpointing)]
    told = {
        name: prompt_ids(policy, {"simplevla-style": padded, "full-padded": padded, "pcm": kept}.get(name, valid))
        for name in {*chosen, "pcm"}
    }
    flops_by = {
        name: flops_of_rows(name, policy.checkpoint.sizes, ids, checkpointing=options.checkpointing)
        for name, ids in told.items()
    }
    costs = measure(policy, {name: make[name]() for name in chosen}, options.repeats)
    peak = next((v for k, v in PEAK.items() if k in card(options.device)), None)
    table = []
    for name, (rows, update_s, activation) in costs.items():
        flops = flops_by[name]
        table.append(
            {
                "variant": name,
                "model": options.model,
                "device": card(options.device),
                "dtype": str(dtype).removeprefix("torch."),
                "checkpointing": options.checkpointing,
                "compile": options.compile,
                "trajectories": options.trajectories,
                "chunks": rows,
                "select_s": round(select_s, 4) if name == "pcm" else "",
                "update_s": round(update_s, 3),
                "chunks_per_s": round(rows / update_s, 2),
                "tflop": round(flops / 1e12, 3),
                "share_of_peak": "" if peak is None else round(flops / update_s / peak, 4),
                "activation_mib": round(activation / 2**20, 1),
                "flop_over_pcm": round(flops / flops_by["pcm"], 2),
                "time_over_pcm": round(update_s / costs["pcm"][1], 2) if "pcm" in costs else "",
                "activations_over_pcm": round(activation / costs["pcm"][2], 2) if "pcm" in costs else "",
            }
        )
    suffix = "-checkpointing" * options.checkpointing + "-compiled" * options.compile
    write_csv(f"actor_update-{options.model}-{options.device.split(':')[0]}{suffix}", table)
    if missing := [name for name in chosen if name not in costs]:
        raise SystemExit(f"out of memory: {', '.join(missing)}")


if __name__ == "__main__":
    main()
