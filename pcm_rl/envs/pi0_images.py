"""Camera images as pi0's checkpoints expect them: rotated by 180 degrees, resized with their aspect kept, padded.

Two programs prepare them, in two ways:

- `transformers`: PI0ImageProcessor resizes by torchvision, bicubic with antialias, and pads right and below. On a CPU
  torchvision calls `torch.nn.functional.interpolate` on uint8, and so does this module, bit for bit: torchvision must
  stay out of this project's dependencies (see `openvla_images.py`).
- openpi, in whose programs the published LIBERO checkpoints were trained and are evaluated: Pillow, bilinear, padded
  on all sides alike.

LIBERO's frames are square, so nothing is padded there. Bicubic frames of 256 pixels and bilinear ones differ by some
grey levels at edges. Where there is padding, transformers adds it after it has scaled values to [-1, 1], with 0, which
no uint8 stands for: 128 is 0.004 above it. openpi pads with black.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from PIL import Image
from torch.nn.functional import interpolate

from pcm_rl.envs.prepared import Pixels, PreparedImages, check_image

RESAMPLES = ("bicubic", "bilinear")


class Pi0Images(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Replaces the images of a `Dict` observation by what a pi0 checkpoint expects, :func:`pi0_image`.

    The named images become `[size, size, 3]` uint8; images that are not named are dropped, to save memory; everything
    else is passed on. A frame equal to the last one of its key, such as the skipped frames of
    :class:`~pcm_rl.envs.chunked.ChunkedEnv`, is not processed again. It must be inside of `ChunkedEnv`::

        ChunkedEnv(Pi0Images(LiberoEnv(observation="pixels"), keys=("image", "wrist_image")))

    Args:
        env: Environment with a `Dict` observation of upright images `[H, W, 3]` uint8.
        keys: Which images, at least one: `"image"`, and `"wrist_image"` for checkpoints that see two.
        size: Height and width in pixels of the result.
        resample: `bicubic` as transformers, or `bilinear` as openpi.
        rotate: Whether images are upright, and become the simulator's raw frame rotated by 180 degrees.

    Raises:
        ValueError: An argument is outside its range, or a key is no image of the observation.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        keys: Sequence[str] = ("image",),
        size: int = 224,
        resample: str = "bicubic",
        rotate: bool = True,
    ) -> None:
        _check_settings(size, resample)
        RecordConstructorArgs.__init__(self, keys=keys, size=size, resample=resample, rotate=rotate)
        super().__init__(env)
        self._images = PreparedImages(
            env.observation_space,
            keys,
            size,
            lambda frame: pi0_image(frame, size=size, resample=resample, rotate=rotate),
        )
        self.observation_space = self._images.space

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The observation with its images processed, in new arrays.

        Raises:
            ValueError: An image has another dtype or shape than `[H, W, 3]` uint8.
        """
        return self._images(observation)


def pi0_image(image: Pixels, *, size: int = 224, resample: str = "bicubic", rotate: bool = True) -> Pixels:
    """One image as a pi0 checkpoint sees it, before its values are scaled.

    Args:
        image: `[H, W, 3]` uint8; upright with `rotate`.
        size: Height and width in pixels of the result, at least 1.
        resample: `bicubic` is what PI0ImageProcessor gives on a CPU, `bilinear` openpi's `resize_with_pad`. An image
            whose longer side is `size` already keeps its values.
        rotate: Rotate the simulator's raw frame by 180 degrees. The raw frame is an upright one with its rows reversed,
            so that rotated it is the upright one mirrored. False takes the image as it is.

    Returns:
        `[size, size, 3]` uint8, where it is padded 128 (bicubic) or 0 (bilinear).

    Raises:
        ValueError: The image has another dtype or shape, or an argument is outside its range.
    """
    _check_settings(size, resample)
    check_image(image)
    image = np.ascontiguousarray(image[:, ::-1] if rotate else image)
    height, width = image.shape[:2]
    if resample == "bicubic":
        scale = min(size / height, size / width)  # transformers multiplies and openpi divides: they round differently
        shape, top, left, fill = (int(height * scale), int(width * scale)), 0, 0, 128
    else:
        ratio = max(height / size, width / size)
        shape = int(height / ratio), int(width / ratio)
        top, left, fill = (size - shape[0]) // 2, (size - shape[1]) // 2, 0
    shape = max(shape[0], 1), max(shape[1], 1)
    padded = np.full((size, size, 3), fill, np.uint8)
    padded[top : top + shape[0], left : left + shape[1]] = _resized(image, shape, resample)
    return padded


def _resized(image: Pixels, shape: tuple[int, int], resample: str) -> Pixels:
    if image.shape[:2] == shape:
        return image
    if resample == "bilinear":
        return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    resized: Pixels = interpolate(planes, shape, mode="bicubic", align_corners=False, antialias=True)[0].numpy()
    return resized.transpose(1, 2, 0)


def _check_settings(size: int, resample: str) -> None:
    if size < 1:
        raise ValueError(f"size is {size}; expected pixels, at least 1 (pi0's is 224)")
    if resample not in RESAMPLES:
        raise ValueError(f"resample is {resample!r}; expected bicubic (as transformers) or bilinear (as openpi)")
