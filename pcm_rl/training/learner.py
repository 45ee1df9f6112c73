"""Configuration -> loss, optimiser and update."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Generator
from torch.optim import AdamW, Optimizer
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.algos.augment import augment_images
from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.algos.update import grpo_update
from pcm_rl.config import Config
from pcm_rl.processes.ranks import ALONE, Ranks


def make_loss(policy: VLAWrapperBase, config: Config) -> ChunkGRPOLoss:
    """The loss that a configuration describes, on the policy itself."""
    update = config.update
    return ChunkGRPOLoss(
        policy,
        clip_epsilon=(update.clip_low, update.clip_high),
        entropy_coeff=update.entropy_coeff,
        functional=False,
    )


def make_optimizer(policy: VLAWrapperBase, config: Config) -> AdamW:
    """AdamW over what is trained: everything, or the adapters of a frozen model."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return AdamW(parameters, lr=config.update.lr, weight_decay=config.update.weight_decay, fused=True)


def update_policy(
    loss: ChunkGRPOLoss,
    optimizer: Optimizer,
    kept: TensorDictBase,
    config: Config,
    generator: Generator,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """One GRPO update on the kept rows; see :func:`~pcm_rl.algos.update.grpo_update`."""
    update = config.update
    kept = augment_images(kept, brightness=update.brightness, jitter=update.jitter, generator=generator)
    return grpo_update(
        loss,
        optimizer,
        kept,
        minibatches=update.minibatches,
        epochs=update.epochs,
        micro_rows=update.micro_rows,
        micro_tokens=update.micro_tokens,
        grad_clip=update.grad_clip,
        generator=generator,
        ranks=ranks,
    )
