"""Recorded episodes as animations: the frames, a time line in the phases' colours, and a cursor that moves along it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open

from pcm_rl.phases import Phase
from pcm_rl.reports.colors import (
    CURSOR_COLOR,
    FAINT_TEXT_COLOR,
    PAPER_COLOR,
    PHASE_COLORS,
    TEXT_COLOR,
    phase_color,
)

MAX_FRAMES = 120
MAX_BYTES = 1_000_000  # of an animation in a page; base64 adds a third

_WIDTH = 448  # pixels: all five legend entries fit on one line
_MARGIN, _TITLE, _BAR, _LEGEND = 12, 30, 16, 26


def animate_recording(path: Path, title: str) -> tuple[bytes, tuple[int, int], int, dict[str, str]]:
    """A recorded episode (see :func:`~pcm_rl.reports.films.save_recording`) as an animation for a page.

    Args:
        path: The recording.
        title: Text above the pictures, before the initial state.

    Returns:
        The animated WebP, its width and height, the number of recorded frames, and the metadata of the recording.
    """
    with safe_open(path, framework="np") as file:
        metadata = dict(file.metadata() or {})
        frames, phase = file.get_tensor("frames"), file.get_tensor("phase")
    stride = max(1, math.ceil(len(frames) / MAX_FRAMES))
    state = f" · initial state {metadata['init_state']}" if "init_state" in metadata else ""
    pictures = annotate(frames[::stride], phase[::stride], title=title + state)
    return encode_webp(pictures, 12.0, max_bytes=MAX_BYTES), pictures[0].size, len(frames), metadata


def annotate(
    frames: NDArray[np.uint8],
    phase: NDArray[np.integer[Any]],
    *,
    title: str,
    kept: NDArray[np.bool_] | None = None,
) -> list[Image.Image]:
    """Draw a title, the phase time line with a cursor, and a legend around every frame of an episode.

    Args:
        frames: ``[T, H, W, 3]`` uint8.
        phase: Phase of every frame, ``[T]`` integers; -1 for none.
        title: One line of text; cut with an ellipsis where it does not fit.
        kept: Whether a frame is of a chunk that a rule keeps, ``[T]`` bool: a dark mark below its cell. None marks
            nothing.

    Returns:
        T pictures of one size. Cell ``t`` of the time line has the colour of ``phase[t]``; on picture ``t`` the cursor
        is at :func:`cursor_x` of ``t``. Empty for T = 0.

    Raises:
        ValueError: If shapes or dtypes differ from the above, or a phase is unknown.
    """
    frames, phase = np.asarray(frames), np.asarray(phase)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}")
    if phase.shape != frames.shape[:1] or not np.issubdtype(phase.dtype, np.integer):
        raise ValueError(f"phase must be integers [{len(frames)}], got {phase.dtype} {phase.shape}")
    if kept is not None and (kept.shape != phase.shape or kept.dtype != np.bool_):
        raise ValueError(f"kept must be bool [{len(frames)}], got {kept.dtype} {kept.shape}")
    if phase.size and not (-1 <= phase.min() and phase.max() < len(Phase)):
        raise ValueError(f"phase must lie in -1..{len(Phase) - 1}, got {phase.min()}..{phase.max()}")
    if not len(frames):
        return []
    height = max(1, round(frames.shape[1] * _WIDTH / frames.shape[2]))
    # an enlarged small picture keeps its hard pixel edges: smoothed edges would look blurred
    resample = Image.Resampling.NEAREST if frames.shape[2] * 3 <= _WIDTH else Image.Resampling.BICUBIC
    background = _background(phase, height, title, np.zeros(len(phase), bool) if kept is None else kept)
    pictures = []
    for index, frame in enumerate(frames):
        picture = background.copy()
        picture.paste(Image.fromarray(frame).resize((_WIDTH, height), resample), (0, _TITLE))
        _draw_cursor(picture, index, phase, height)
        pictures.append(picture)
    return pictures


def cursor_x(index: int, count: int) -> int:
    """Column of the cursor's centre on picture ``index`` of ``count``: the middle of cell ``index``, in pixels."""
    return round(_MARGIN + (index + 0.5) * (_WIDTH - 2 * _MARGIN) / count)


def encode_webp(images: list[Image.Image], fps: float, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Encode pictures as an endless animated WebP that stays small.

    If the file is larger than ``max_bytes``, the quality is lowered first; then pictures are left out (the others are
    shown longer, so the duration stays); then the size is halved. The last attempt is returned in any case.

    Args:
        images: At least one RGB picture, all of one size.
        fps: Pictures a second, positive.
        max_bytes: Size to stay under.

    Returns:
        The file's bytes.

    Raises:
        ValueError: If there is no picture or ``fps`` is not positive.
    """
    if not images:
        raise ValueError("there is no picture to encode; the recording is empty")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    attempts = [(72, 1, 1), (50, 1, 1), (40, 2, 1), (35, 3, 2), (25, 4, 2), (15, 6, 3)]
    encoded = b""
    while attempts:
        quality, stride, shrink = attempts.pop(0)
        pictures = images[::stride]
        if shrink > 1:
            pictures = [image.reduce(shrink) for image in pictures]
        buffer = io.BytesIO()
        pictures[0].save(
            buffer,
            format="WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=[max(1, round(1000 * min(stride, len(images) - k * stride) / fps)) for k in range(len(pictures))],
            loop=0,
            quality=quality,
            method=1,  # the slower methods take up to ten times as long for files of the same size
        )
        encoded = buffer.getvalue()
        if len(encoded) <= max_bytes:
            break
        if len(encoded) > 3 * max_bytes:  # the next attempt would be too large as well
            attempts = attempts[1:] or attempts
    return encoded


def label_font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font that matplotlib ships, so that text looks the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _background(phase: NDArray[np.integer[Any]], height: int, title: str, kept: NDArray[np.bool_]) -> Image.Image:
    """Everything that does not change from frame to frame."""
    picture = Image.new("RGB", (_WIDTH, _TITLE + height + _MARGIN + _BAR + _LEGEND + 2), PAPER_COLOR)
    draw = ImageDraw.Draw(picture)
    room = _WIDTH - 2 * _MARGIN - 80  # the frame counter stands at the right
    font = label_font(13, bold=True)
    line = " ".join(title.split())
    if draw.textlength(line, font=font) > room:
        while line and draw.textlength(line + "…", font=font) > room:
            line = line[:-1]
        line = line.rstrip() + "…"
    draw.text((_MARGIN, _TITLE // 2), line, fill=TEXT_COLOR, font=font, anchor="lm")
    top = _TITLE + height + _MARGIN
    cell = (_WIDTH - 2 * _MARGIN) / len(phase)
    for index, value in enumerate(phase.tolist()):
        left, right = round(_MARGIN + index * cell), round(_MARGIN + (index + 1) * cell)
        # cells narrower than a pixel must still be visible
        draw.rectangle((left, top, max(left, right - 1), top + _BAR - 1), fill=phase_color(value))
        if kept[index]:
            draw.rectangle((left, top + _BAR + 3, max(left, right - 1), top + _BAR + 6), fill=CURSOR_COLOR)
    return picture


def _draw_cursor(picture: Image.Image, index: int, phase: NDArray[np.integer[Any]], height: int) -> None:
    draw = ImageDraw.Draw(picture)
    counter = f"{index + 1} / {len(phase)}"
    draw.text((_WIDTH - _MARGIN, _TITLE // 2), counter, fill=FAINT_TEXT_COLOR, font=label_font(11), anchor="rm")
    x, top = cursor_x(index, len(phase)), _TITLE + height + _MARGIN
    draw.rectangle(
        (x - 2, top - 4, x + 2, top + _BAR + 3), fill=PAPER_COLOR
    )  # a halo, so that it is visible on any colour
    draw.rectangle((x - 1, top - 4, x + 1, top + _BAR + 3), fill=CURSOR_COLOR)
    draw.polygon([(x - 5, top - 9), (x + 5, top - 9), (x, top - 3)], fill=CURSOR_COLOR)
    left, middle = float(_MARGIN), top + _BAR + _LEGEND // 2 + 3
    for entry in Phase:
        now = int(entry) == int(phase[index])
        font = label_font(11, bold=now)
        draw.rounded_rectangle((left, middle - 5, left + 9, middle + 4), radius=2, fill=PHASE_COLORS[entry])
        draw.text(
            (left + 15, middle), entry.label, fill=TEXT_COLOR if now else FAINT_TEXT_COLOR, font=font, anchor="lm"
        )
        # spaced by the bold width, so that the entries do not move when the phase changes
        left += 15 + draw.textlength(entry.label, font=label_font(11, bold=True)) + 13
