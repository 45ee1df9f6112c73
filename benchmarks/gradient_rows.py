"""Exact inner products of the rows' gradients in a step of GRPO, for the small policy.

A linear layer's gradient of one row is the outer product of what came back (delta) and what went in (h), so
``<g_i, g_j> = sum over layers of (delta_i . delta_j) (h_i . h_j + 1)``: all of them follow from matrices ``[M, width]``
and the ``[M, P]`` matrix of gradients is never made. Nothing is projected or approximated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDictBase
from torch import Tensor, nn

from pcm_rl.config import Config, load_config
from pcm_rl.episodes import ADVANTAGE, CHUNK_ID, EPISODE, GROUP, IS_PAD, PHASE, SUCCESS, TOKENS
from pcm_rl.selection import trajectory_weights
from pcm_rl.training.grpo import make_loss
from pcm_rl.training.trainer import Trainer

RECIPE = Path(__file__).parent.parent / "configs" / "pick_place.yaml"


@dataclass
class Rows:
    """A step's batch as seen by the selection rules; the full-valid gradient is the sum of the rows' parts.

    Attributes:
        gram: Inner products of the parts, ``[M, M]`` float32; None where not worked out.
        signal: Inner product of each part with the gradient of an independent pool, ``[M]`` float32.
        square: Square norm of each part, ``[M]`` float32.
        share: Weight of the row in the mean over trajectories, ``[M]`` float64, sums to 1.
        steps: Executed steps, ``[M]`` float64.
        advantage: ``[M]`` float64.
        spread: ``sqrt(sum over executed tokens of (1 - sum p^2)) / tokens``, ``[M]``: root of the expected square of
            the gradient with respect to the logits, which does not depend on what was drawn.
        drawn: ``sqrt(sum over executed tokens of |p - onehot(token)|^2) / tokens``, ``[M]``: the same after the draw.
        episode, group, success, phase, chunk: ``[M]`` int64.
    """

    gram: Tensor | None
    signal: Tensor
    square: Tensor
    share: Tensor
    steps: Tensor
    advantage: Tensor
    spread: Tensor
    drawn: Tensor
    episode: Tensor
    group: Tensor
    success: Tensor
    phase: Tensor
    chunk: Tensor

    def __len__(self) -> int:
        return len(self.share)


def untrained(config: Config) -> Trainer:
    """A trainer without a folder, after its supervised start."""
    trainer = Trainer(config, say=lambda line: None)
    trainer.probed = True  # nothing has to be checked before an update here
    trainer.supervised_start()
    return trainer


def snapshots(seed: int, steps: Sequence[int]) -> Iterator[tuple[int, Trainer]]:
    """A full-valid run of pick and place, handed over after each of ``steps`` with torch's generator set anew."""
    trainer = untrained(load_config(RECIPE, [f"seed={seed}", "selection.name=none", "record=false", "logger=none"]))
    with contextlib.closing(trainer.env):
        for before, step in zip([0, *steps], steps, strict=False):
            for _ in range(before, step):
                trainer.train_step()
            torch.manual_seed(1000 * seed + step)
            yield step, trainer


def next_batch(trainer: Trainer) -> TensorDictBase:
    """Mixed groups of a step's rollouts."""
    rows = trainer.collect()
    return rows[trainer.grpo.write_advantage(rows)]


def _share(batch: TensorDictBase) -> Tensor:
    return trajectory_weights(batch.get(EPISODE), ~batch.get(IS_PAD)).double() / len(batch)


def _objective(trainer: Trainer, batch: TensorDictBase) -> Tensor:
    """Full-valid loss of a whole batch, before any update (ratio 1)."""
    loss = make_loss(trainer.policy, trainer.config.update)
    loss.reduction = "sum"
    out = loss(batch.clone(False).set("weight", _share(batch).float()))
    return out.get("loss_objective")


def batch_gradient(trainer: Trainer, batch: TensorDictBase) -> list[Tensor]:
    """Full-valid gradient of a batch, one tensor a parameter."""
    _objective(trainer, batch).backward()
    gradient = [p.grad.detach().clone() for p in trainer.policy.parameters()]
    trainer.policy.zero_grad()
    return gradient


def measure_snapshot(trainer: Trainer, number: int, *, grams: int) -> Iterator[Rows]:
    """Rows of ``number`` fresh batches, each against the mean gradient of the others; ``grams`` with a Gram matrix."""
    batches = [next_batch(trainer) for _ in range(number)]
    gradients = [batch_gradient(trainer, batch) for batch in batches]
    total = [torch.stack(parts).sum(0) for parts in zip(*gradients, strict=True)]
    for k, batch in enumerate(batches):
        others = [(all_ - own) / (number - 1) for all_, own in zip(total, gradients[k], strict=True)]
        yield measure_rows(trainer, batch, others, with_gram=k < grams)


def save_rows(rows: Rows, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value for name, value in vars(rows).items() if value is not None}, path)


def load_rows(path: Path) -> Rows:
    return Rows(**{"gram": None, **load_file(path)})


def measure_rows(trainer: Trainer, batch: TensorDictBase, pool: list[Tensor], *, with_gram: bool) -> Rows:
    """The rows of ``batch`` with their inner products among themselves (if asked) and with ``pool``."""
    seen: list[tuple[Tensor, Tensor]] = []

    def remember(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen.append((inputs[0].detach(), output))

    layers = [module for module in trainer.policy.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(remember) for layer in layers]
    _objective(trainer, batch).backward()
    for hook in hooks:
        hook.remove()
    trainer.policy.zero_grad()
    if sum(p.numel() for layer in layers for p in layer.parameters()) != sum(
        p.numel() for p in trainer.policy.parameters()
    ):
        raise ValueError("parameters outside linear layers are not counted here; use network=mlp")
    gram = torch.zeros(len(batch), len(batch)) if with_gram else None
    signal, square = torch.zeros(len(batch)), torch.zeros(len(batch))
    for (h, output), weight, bias in zip(seen, pool[::2], pool[1::2], strict=True):
        delta = output.grad
        square += delta.square().sum(1) * (h.square().sum(1) + 1)
        if gram is not None:
            gram += (delta @ delta.T) * (h @ h.T + 1)
        signal += ((delta @ weight) * h).sum(1) + delta @ bias
    spread, drawn = _logit_norms(trainer, batch)
    steps = (~batch.get(IS_PAD)).sum(1).double()
    return Rows(
        gram,
        signal,
        square,
        _share(batch),
        steps,
        batch.get(ADVANTAGE).double(),
        spread,
        drawn,
        *(batch.get(key).long() for key in (EPISODE, GROUP, SUCCESS, PHASE, CHUNK_ID)),
    )


@torch.no_grad()
def _logit_norms(trainer: Trainer, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    p = trainer.policy.get_dist(batch).probs  # [M, L, D, bins]
    executed = (~batch.get(IS_PAD)).unsqueeze(-1)
    tokens = executed.sum((1, 2)) * p.shape[2]
    square = p.square().sum(-1)
    chosen = p.gather(-1, batch.get(TOKENS).unsqueeze(-1)).squeeze(-1)
    expected = ((1 - square) * executed).sum((1, 2)).sqrt() / tokens
    drawn = ((square - 2 * chosen + 1) * executed).sum((1, 2)).sqrt() / tokens
    return expected.double(), drawn.double()
