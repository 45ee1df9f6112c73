"""Camera images as OpenVLA's and OpenVLA-OFT's checkpoints expect them: what TensorFlow did, without TensorFlow.

A checkpoint sees what its training data went through, and OpenVLA-OFT's LIBERO evaluation repeats it: rotate by 180
degrees, JPEG and back, Lanczos-3 to 224 x 224, cut out 0.9 of the area, bilinearly back to 224 x 224. Where TensorFlow
differs from other libraries, it is followed:

- `tf.io.decode_image` decodes JPEG with libjpeg's fast integer transform, not the accurate one that Pillow and
  torchvision use. On a LIBERO frame at quality 95 the two differ in 69 % of the values, by 1.7 grey levels (root mean
  square); the fast one is darker by 0.8 on average.
- `tf.image.resize` computes sampling positions and weights in float32.
- `tf.image.crop_and_resize` lays the corners' centres on the crop's corners, and interpolates along x before y.
- `tf.image.convert_image_dtype` multiplies by 255.5 and truncates.

TorchRL's `OpenVLAImagePreprocessor` (backend `torch_reference`) has the same resize and crop, which the tests compare
with, but encodes and decodes JPEG with torchvision (the accurate transform). torchvision must stay out of this
project's dependencies: one built for CUDA beside a torch built for CPUs breaks the import of peft.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from PIL import Image

from pcm_rl.envs.prepared import Pixels, PreparedImages, check_image

Planes = NDArray[np.float32]

LANCZOS_RADIUS = 3
_HALF = 1 << 15  # of the 16-bit fixed point in which libjpeg converts colours


class OpenVLAImages(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Replaces the images of a `Dict` observation by what an OpenVLA checkpoint expects, :func:`openvla_image`.

    The named images become `[size, size, 3]` uint8; images that are not named are dropped, to save memory; everything
    else is passed on. A frame equal to the last one of its key, such as the skipped frames of
    :class:`~pcm_rl.envs.chunked.ChunkedEnv`, is not processed again. It must be inside of `ChunkedEnv`::

        ChunkedEnv(OpenVLAImages(LiberoEnv(observation="pixels")))

    Args:
        env: Environment with a `Dict` observation of upright images `[H, W, 3]` uint8.
        keys: Which images, at least one: `"image"`, and `"wrist_image"` for checkpoints that see two.
        size: Height and width in pixels of the result.
        jpeg_quality: 1 to 100.
        crop_area: Share of the area that the centre crop keeps, in (0, 1]; None for checkpoints trained without crops.
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
        jpeg_quality: int = 95,
        crop_area: float | None = 0.9,
        rotate: bool = True,
    ) -> None:
        settings: dict[str, Any] = dict(size=size, jpeg_quality=jpeg_quality, crop_area=crop_area, rotate=rotate)
        _check_settings(size, jpeg_quality, crop_area)
        RecordConstructorArgs.__init__(self, keys=keys, **settings)
        super().__init__(env)
        self._images = PreparedImages(env.observation_space, keys, size, lambda frame: openvla_image(frame, **settings))
        self.observation_space = self._images.space

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The observation with its images processed, in new arrays.

        Raises:
            ValueError: An image has another dtype or shape than `[H, W, 3]` uint8.
        """
        return self._images(observation)


def openvla_image(
    image: Pixels,
    *,
    size: int = 224,
    jpeg_quality: int = 95,
    crop_area: float | None = 0.9,
    rotate: bool = True,
) -> Pixels:
    """One image as OpenVLA-OFT's LIBERO evaluation feeds it to the processor.

    Args:
        image: `[H, W, 3]` uint8; upright with `rotate`.
        size: Height and width in pixels of the result, at least 1.
        jpeg_quality: Of the round trip, 1 to 100.
        crop_area: Share of the area that the centre crop keeps, in (0, 1]; None keeps all.
        rotate: Rotate the simulator's raw frame by 180 degrees. The raw frame is an upright one with its rows reversed,
            so that rotated it is the upright one mirrored. False takes the image as it is.

    Returns:
        `[size, size, 3]` uint8.

    Raises:
        ValueError: The image has another dtype or shape, or an argument is outside its range.
    """
    _check_settings(size, jpeg_quality, crop_area)
    check_image(image)
    planes = lanczos3_resize(jpeg_round_trip(image[:, ::-1] if rotate else image, jpeg_quality), size)
    if crop_area is not None:
        planes = centre_crop(planes, crop_area)
    return np.ascontiguousarray(planes.astype(np.uint8).transpose(1, 2, 0))


def jpeg_round_trip(image: Pixels, quality: int = 95) -> Planes:
    """`tf.io.decode_image(tf.image.encode_jpeg(image, quality=quality))`: chroma at half resolution, fast decoding.

    Pillow decodes fast in its draft mode only, which also omits the smoothing of the chroma. So this function takes the
    planes before their conversion to RGB, and repeats libjpeg's smoothing and conversion in integers.

    Args:
        image: `[H, W, 3]` uint8.
        quality: 1 to 100.

    Returns:
        `[3, H, W]` float32, integers in [0, 255].
    """
    with Image.open(io.BytesIO(encode_jpeg(image, quality))) as picture:
        picture.draft("YCbCr", picture.size)
        picture.decoderconfig = (1, 1)  # full size, draft
        decoded = np.asarray(picture)
    height, width = decoded.shape[:2]
    blue, red = _upsampled(decoded[::2, ::2, 1:].transpose(2, 0, 1))[:, :height, :width].astype(np.int32) - 128
    rgb = np.repeat(decoded[None, ..., 0].astype(np.int32), 3, axis=0)
    rgb[0] += (91881 * red + _HALF) >> 16  # 1.402, 0.71414, 0.34414 and 1.772 times 2^16: JFIF's YCbCr
    rgb[1] += (-46802 * red - 22554 * blue + _HALF) >> 16
    rgb[2] += (116130 * blue + _HALF) >> 16
    return rgb.clip(0, 255).astype(np.float32)


def encode_jpeg(image: Pixels, quality: int = 95) -> bytes:
    """`[H, W, 3]` uint8 as a JPEG with chroma at half the resolution in both directions (4:2:0)."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def _upsampled(chroma: Pixels) -> NDArray[np.int16]:
    """`[2, h, w]` uint8 -> `[2, 2h, 2w]`: libjpeg's weights of 3/4 and 1/4, rounded up and down in turn."""
    centre = chroma.astype(np.int16)
    rows = _interleaved(centre, axis=1)
    pixels = _interleaved(rows, axis=2)
    pixels[..., ::2] += 8
    pixels[..., 1::2] += 7
    return pixels >> 4


def _interleaved(values: NDArray[np.int16], axis: int) -> NDArray[np.int16]:
    """Twice as many entries along `axis`: each three times itself plus its neighbour before, then after; times 4."""
    last = values.shape[axis] - 1
    before = values.take(np.maximum(np.arange(last + 1) - 1, 0), axis=axis)
    after = values.take(np.minimum(np.arange(last + 1) + 1, last), axis=axis)
    pairs = np.stack([3 * values + before, 3 * values + after], axis=axis + 1)
    shape = list(values.shape)
    shape[axis] *= 2
    return pairs.reshape(shape)


def lanczos3_resize(planes: Planes, size: int) -> Planes:
    """`tf.image.resize(image, (size, size), method="lanczos3", antialias=True)`, rounded and clipped.

    Args:
        planes: `[C, H, W]` float32.
        size: Height and width in pixels of the result.

    Returns:
        `[C, size, size]` float32, integers in [0, 255]; `planes` itself where it has this size already.
    """
    rows, columns = (_lanczos3_weights(length, size) for length in planes.shape[1:])
    resized: Planes = np.matmul(rows @ planes, columns.T, dtype=np.float32)
    return np.rint(resized).clip(0, 255)


@lru_cache(maxsize=16)
def _lanczos3_weights(source: int, target: int) -> Planes:
    """`[target, source]` float32 with rows of sum 1; the kernel widens where the image shrinks."""
    unit = np.ones(1, np.float32)
    step = unit / (target * unit / source)  # source pixels per target pixel, rounded as TensorFlow's inverse scale is
    centres = (np.arange(target, dtype=np.float32) + 0.5 * unit) * step
    offsets = np.arange(source, dtype=np.float32) + 0.5 * unit - centres[:, None]
    distance = np.abs(offsets) * (unit / np.maximum(step, 1))
    kernel = np.sinc(distance) * np.sinc(distance / LANCZOS_RADIUS) * (distance <= LANCZOS_RADIUS)
    return _frozen(kernel / kernel.sum(axis=1, keepdims=True))


def centre_crop(planes: Planes, area: float = 0.9) -> Planes:
    """`tf.image.crop_and_resize` on the central square of side sqrt(area), back to the size it came from.

    Args:
        planes: `[C, S, S]` float32, integers in [0, 255].
        area: Share of the area, in (0, 1].

    Returns:
        `[C, S, S]` float32 in [0, 255], to be truncated to integers.
    """
    lower, upper, fraction = _crop_positions(planes.shape[-1], area)
    values = planes * np.float32(1 / 255)
    values = _between(values.take(lower, axis=2), values.take(upper, axis=2), fraction)
    values = _between(values.take(lower, axis=1), values.take(upper, axis=1), fraction[:, None])
    return values.clip(0, 1) * np.float32(255.5)


def _between(start: Planes, end: Planes, fraction: Planes) -> Planes:
    end -= start  # in place, as both are copies
    end *= fraction
    end += start
    return end


@lru_cache(maxsize=16)
def _crop_positions(size: int, area: float) -> tuple[NDArray[np.intp], NDArray[np.intp], Planes]:
    """Neighbours before and after each of S positions, and the fraction of the way from one to the other, `[S]`."""
    side = np.sqrt(np.full(1, area, np.float32))
    start = (1 - side) / 2
    step = (start + side - start) * (size - 1) / max(size - 1, 1)
    positions = (start * (size - 1) + np.arange(size, dtype=np.float32) * step).clip(0, size - 1)
    lower = np.floor(positions)
    return _frozen(lower.astype(np.intp)), _frozen(np.ceil(positions).astype(np.intp)), _frozen(positions - lower)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Read-only, as it is cached."""
    array.setflags(write=False)
    return array


def _check_settings(size: int, jpeg_quality: int, crop_area: float | None) -> None:
    if size < 1:
        raise ValueError(f"size is {size}; expected pixels, at least 1 (OpenVLA's is 224)")
    if not 1 <= jpeg_quality <= 100:
        raise ValueError(f"jpeg_quality is {jpeg_quality}; expected 1 to 100 (OpenVLA's is 95)")
    if crop_area is not None and not 0 < crop_area <= 1:
        raise ValueError(
            f"crop_area is {crop_area}; expected a share in (0, 1], or None for no crop (OpenVLA's is 0.9)"
        )
