"""Frames of a LeRobot data set: pictures in its tables, and films beside them."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pcm_rl.config import ConfigError
from pcm_rl.rollouts.lerobot.metadata import Clip, Episode


def encode_png(frame: Tensor) -> bytes:
    """``[3, H, W]`` uint8 as a PNG, from which it comes back bit for bit."""
    file = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


def decode_picture(cell: Any, size: tuple[int, int], where: str) -> Tensor:
    """A cell of a table -> ``[3, H, W]`` uint8.

    Args:
        cell: A mapping with the ``bytes`` of a PNG or JPEG.
        size: Height and width expected.
        where: Names the cell in errors.

    Raises:
        ConfigError: If there is no picture in it, or one of another size.
    """
    content = cell.get("bytes") if isinstance(cell, dict) else None
    if content is None:
        raise ConfigError(f"{where} has no picture in it; expected its bytes in the table: record it again")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{where} is damaged: {error}; download the data set again") from error
    if pixels.shape[:2] != size:
        raise ConfigError(f"{where} is {list(pixels.shape[:2])}, height and width; expected {list(size)}")
    return _channels_first(pixels)


def read_clips(episodes: Sequence[Episode], camera: str, fps: float, out: Tensor) -> None:
    """Fill ``out [M, 3, H, W]`` uint8 with the frames of a camera, those of one episode after those of another.

    Every film is decoded once, from its beginning. Its frame ``round(start * fps)`` is the first one of an episode.

    Args:
        episodes: All of them, in the order of ``out``.
        camera: Name of the feature.
        fps: Frames a second that the data set promises.
        out: Changed in place.

    Raises:
        ConfigError: If a film is missing or damaged, has other frames a second or another size, or is too short.
        ImportError: imageio's ffmpeg is not installed.
    """
    first, films = 0, dict[Path, list[tuple[int, int, int]]]()
    for episode in episodes:
        clip: Clip = episode.clips[camera]
        if not 0 <= clip.start < math.inf:
            raise ConfigError(
                f"episode {episode.index} begins at {clip.start} s of the film {clip.path}; expected 0 or more"
            )
        films.setdefault(clip.path, []).append((round(clip.start * fps), first, episode.length))
        first += episode.length
    for path, clips in films.items():
        _read_film(path, sorted(clips), fps, out)


def _read_film(path: Path, clips: Sequence[tuple[int, int, int]], fps: float, out: Tensor) -> None:
    needed = max(start + length for start, _, length in clips)
    target = np.full(needed, -1, dtype=np.int64)  # row of each frame
    for start, first, length in clips:
        if (target[start : start + length] >= 0).any():
            raise ConfigError(f"two episodes have the same frames of the film {path}; download the data set again")
        target[start : start + length] = np.arange(first, first + length)
    height, width = out.shape[2:]
    count = 0
    with contextlib.closing(_frames(path, fps, (height, width))) as frames:
        for row, frame in zip(target.tolist(), frames):  # noqa: B905 - the film may be longer
            count += 1
            if row >= 0:
                out[row] = _channels_first(frame)
    if count < needed:
        raise ConfigError(f"the film {path} has {count} frames; expected {needed} at least: download it again")


def _frames(path: Path, fps: float, size: tuple[int, int]) -> Generator[NDArray[np.uint8], None, None]:
    """The frames of a film as ``[H, W, 3]`` uint8, each once, as they are stored."""
    if not path.is_file():
        raise ConfigError(f"the LeRobot data set lacks {path}; download it again, with its videos")
    stream = _require_ffmpeg().read_frames(path, output_params=["-fps_mode", "passthrough"])
    try:
        about = next(stream)
        if abs(about["fps"] - fps) > 0.01 * fps:
            raise ConfigError(f"the film {path} has {about['fps']:g} frames a second; meta/info.json says {fps:g}")
        if about["size"] != size[::-1]:
            raise ConfigError(
                f"the film {path} is {list(about['size'])}, width and height; expected {list(size[::-1])}"
            )
        for frame in stream:
            yield np.frombuffer(frame, dtype=np.uint8).reshape(*size, 3)
    except (OSError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"the film {path} is damaged: {text}; download it again") from error
    finally:
        stream.close()  # a generator, which ends ffmpeg


def _require_ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ImportError(
            f'films of LeRobot data sets need imageio-ffmpeg ({error}); run: pip install "pcm_rl[lerobot]"'
        ) from error
    return imageio_ffmpeg


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())
