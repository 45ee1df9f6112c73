"""Other light on the images of an update (the paper: brightness and jitter)."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Generator, Tensor

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in luminance


def augment_images(
    batch: TensorDictBase, *, brightness: float, jitter: float, generator: Generator | None = None
) -> TensorDictBase:
    """Change brightness, contrast and saturation of every image ``[M, 3, H, W]`` uint8 among the observations.

    A factor is drawn for each row and each change, within ``1 +- brightness`` for the first and ``1 +- jitter`` for the
    others; several images of one row share it. Advantages and recorded log-probs stay, so the ratio of an augmented row
    is not 1 before the first update: the policy is asked to act under other light as it did under this.

    Args:
        batch: ``[M]`` rows; left as it is.
        brightness: 0 leaves the brightness.
        jitter: 0 leaves contrast and saturation.
        generator: Draws the factors.

    Returns:
        Rows with their own images; the same object where both are 0.
    """
    if not brightness and not jitter:
        return batch
    rows = len(batch)
    spread = torch.tensor([brightness, jitter, jitter]).view(3, 1)
    factors = 1.0 + spread * (2.0 * torch.rand(3, rows, generator=generator) - 1.0)
    batch = batch.copy()
    for key, value in list(batch.get("observation").items()):
        if value.dtype == torch.uint8 and value.ndim == 4 and value.shape[1] == 3:
            batch.set(("observation", key), relight(value, *factors.to(value.device)))
    return batch


def relight(image: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale an image's distance from black, then from its mean grey, then from its own greys.

    Args:
        image: ``[M, 3, H, W]`` uint8.
        brightness: ``[M]``, 1 leaves it.
        contrast: ``[M]``.
        saturation: ``[M]``.
    """
    factor = [value.view(-1, 1, 1, 1) for value in (brightness, contrast, saturation)]
    weights = torch.tensor(GREY, device=image.device).view(1, 3, 1, 1)
    light = image.float() * factor[0]
    mean = (light * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    light = mean + (light - mean) * factor[1]
    grey = (light * weights).sum(1, keepdim=True)
    return (grey + (light - grey) * factor[2]).round_().clamp_(0, 255).to(torch.uint8)
