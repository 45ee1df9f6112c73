"""Changes of light in the images of an update (the paper: brightness and jitter)."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase, is_tensor_collection
from torch import Generator, Tensor

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in luminance


def augment_images(
    batch: TensorDictBase, *, brightness: float, jitter: float, generator: Generator | None = None
) -> TensorDictBase:
    """Change brightness, contrast and saturation of every image ``[M, 3, H, W]`` uint8 among the observations.

    A factor is drawn for each row and each change, within ``1 +- brightness`` for brightness and ``1 +- jitter`` for
    contrast and saturation; several images of one row share it. Advantages and recorded log-probs stay, so the ratio of
    an augmented row is not 1 before the first update: the policy should act in the same way under other light.

    Args:
        batch: ``[M]`` rows; not changed.
        brightness: 0 changes nothing.
        jitter: Of contrast and saturation; 0 changes nothing.
        generator: Draws the factors.

    Returns:
        Rows with new images; the same object where both are 0.

    Raises:
        ValueError: If ``"observation"`` holds no entries.
    """
    if not brightness and not jitter:
        return batch
    observation = batch.get("observation", None)
    if not is_tensor_collection(observation):
        raise ValueError(f"expected images among the entries of 'observation', got a {type(observation).__name__}")
    rows = len(batch)
    spread = torch.tensor([brightness, jitter, jitter]).view(3, 1)
    factors = 1.0 + spread * (2.0 * torch.rand(3, rows, generator=generator) - 1.0)
    batch = batch.copy()
    for key, value in list(observation.items()):
        if isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 4 and value.shape[1] == 3:
            batch.set(("observation", key), relight(value, *factors.to(value.device)))
    return batch


def relight(image: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale an image's distance from black, then from its mean grey, then from each pixel's grey.

    Args:
        image: ``[M, 3, H, W]`` uint8.
        brightness: ``[M]``, 1 changes nothing.
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
