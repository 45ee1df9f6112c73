"""Frames of the toy table-top tasks: a side view and a top view, drawn with PIL.

The scene is drawn at twice the size and averaged down, which smooths the edges at less than a tenth of the cost of a
real renderer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pcm_rl.envs.tabletop.core import BIN_RADIUS, REST_HEIGHT, RIM_RADIUS, TabletopState

WIDTH: Final = 480  # pixels of a frame; each view takes half
HEIGHT: Final = 240  # pixels
_OVERSAMPLING: Final = 2
_SCALE: Final = 350 * _OVERSAMPLING  # drawn pixels for each metre
_PANEL: Final = WIDTH // 2 * _OVERSAMPLING
_TABLE_Y: Final = 205 * _OVERSAMPLING  # row of the table top in the side view
_TOP_MIDDLE: Final = 129 * _OVERSAMPLING  # row of y = 0 in the top view

_SKY, _WOOD, _WOOD_DARK, _MAT = (242, 245, 250), (205, 178, 142), (168, 139, 104), (228, 220, 206)
_INK, _STEEL, _STEEL_DARK = (52, 61, 77), (116, 128, 148), (70, 80, 98)
_OBJECT, _OBJECT_DARK = (235, 112, 62), (180, 76, 36)
_BIN, _BIN_DARK, _BIN_FLOOR = (70, 140, 205), (40, 92, 150), (184, 214, 240)
_GOOD, _WARN, _TARGET = (46, 160, 90), (214, 60, 60), (142, 84, 190)

Colour = tuple[int, int, int]
Point = tuple[float, float]


def render_frame(state: TabletopState) -> npt.NDArray[np.uint8]:
    """Draws one environment.

    Args:
        state: as returned by `TabletopCore.state`.

    Returns:
        uint8 `[240, 480, 3]`: left the side view (x to the right, z up), right the top view (x to the right, y up). The
        gripper turns green while it holds the object; the bar at the lower left is the slip meter.
    """
    image = _background().copy()
    draw = ImageDraw.Draw(image)
    _draw_side(draw, state)
    _draw_top(draw, state)
    _draw_labels(draw, state)
    return np.asarray(image.reduce(_OVERSAMPLING))


@lru_cache(maxsize=1)
def _background() -> Image.Image:
    """The parts that never move: the table and the panels."""
    image = Image.new("RGB", (2 * _PANEL, HEIGHT * _OVERSAMPLING), _SKY)
    draw = ImageDraw.Draw(image)
    bottom = HEIGHT * _OVERSAMPLING
    draw.rectangle((0, _TABLE_Y, _PANEL, bottom), fill=_WOOD)
    draw.rectangle((0, _TABLE_Y, _PANEL, _TABLE_Y + 6), fill=_WOOD_DARK)
    draw.rectangle((_PANEL, 0, 2 * _PANEL, bottom), fill=_WOOD)
    (left, top), (right, low) = _top(-0.30, 0.30), _top(0.30, -0.30)
    draw.rounded_rectangle((left, top, right, low), 16, fill=_MAT, outline=_WOOD_DARK, width=3)
    draw.line((_PANEL, 0, _PANEL, bottom), fill=_INK, width=3)
    return image


@lru_cache(maxsize=4)
def _font(size: int = 22) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _side(x: float, z: float) -> Point:
    return _PANEL / 2 + x * _SCALE, _TABLE_Y - z * _SCALE * 1.6  # heights are stretched: most failures depend on them


def _top(x: float, y: float) -> Point:
    return 1.5 * _PANEL + x * _SCALE, _TOP_MIDDLE - y * _SCALE


def _gripper_colours(state: TabletopState) -> tuple[Colour, Colour]:
    return (_GOOD, _GOOD) if state.held else (_STEEL, _STEEL_DARK)


def _finger_gap(state: TabletopState) -> float:
    """Distance of each finger from the middle, in metres: a held object just fits at an opening of 1/4."""
    return 0.017 + 0.020 * state.opening


def _draw_side(draw: ImageDraw.ImageDraw, state: TabletopState) -> None:
    x, _, z, _ = state.object
    if state.task == "pick_place":
        bx, wall = state.bin[0], 0.030
        draw.rectangle((*_side(bx - RIM_RADIUS, wall), *_side(bx + RIM_RADIUS, 0)), fill=_BIN_FLOOR)
        _box(draw, _side(x - 0.02, z + REST_HEIGHT), _side(x + 0.02, z - REST_HEIGHT), _OBJECT, _OBJECT_DARK)
        for edge in (bx - RIM_RADIUS, bx + RIM_RADIUS - 0.008):
            _box(draw, _side(edge, wall), _side(edge + 0.008, 0), _BIN, _BIN_DARK)
    else:
        _cross(draw, _side(x, z), 18)
    ex, _, ez, _ = state.ee
    face, dark = _gripper_colours(state)
    gap, palm = _finger_gap(state), ez + 0.040
    draw.rectangle((*_side(ex - 0.007, 0.5), *_side(ex + 0.007, palm)), fill=dark)
    _box(draw, _side(ex - 0.045, palm + 0.014), _side(ex + 0.045, palm), face, dark)
    for sign in (-1.0, 1.0):
        middle = ex + sign * (gap + 0.005)
        _box(draw, _side(middle - 0.005, palm), _side(middle + 0.005, ez - 0.012), face, dark)


def _draw_top(draw: ImageDraw.ImageDraw, state: TabletopState) -> None:
    x, y, _, yaw = state.object
    if state.task == "pick_place":
        cx, cy = _top(*state.bin)
        outer, inner = RIM_RADIUS * _SCALE, BIN_RADIUS * _SCALE
        draw.ellipse((cx - outer, cy - outer, cx + outer, cy + outer), fill=_BIN_FLOOR, outline=_BIN_DARK, width=6)
        draw.ellipse((cx - inner, cy - inner, cx + inner, cy + inner), outline=_BIN, width=3)
        draw.polygon(_turned(x, y, yaw, 0.0, 0.0, 0.022, 0.022), fill=_OBJECT, outline=_OBJECT_DARK, width=4)
        draw.line(_turned(x, y, yaw, 0.0, 0.0, 0.018, 0.0)[:2], fill=_OBJECT_DARK, width=4)
    else:
        _cross(draw, _top(x, y), 18)
        draw.line(_turned(x, y, yaw, 0.0, 0.0, 0.045, 0.0)[:2], fill=_TARGET, width=4)
    ex, ey, _, ee_yaw = state.ee
    face, dark = _gripper_colours(state)
    gap = _finger_gap(state) + 0.005
    draw.line(_turned(ex, ey, ee_yaw, 0.0, 0.0, gap, 0.0)[:2], fill=dark, width=5)
    for sign in (-1.0, 1.0):
        draw.polygon(_turned(ex, ey, ee_yaw, sign * gap, 0.0, 0.006, 0.019), fill=face, outline=dark, width=3)


def _draw_labels(draw: ImageDraw.ImageDraw, state: TabletopState) -> None:
    draw.rectangle((0, 0, 2 * _PANEL, 36), fill=_INK)
    draw.text((16, 4), f"{'pick and place' if state.task == 'pick_place' else 'reach'}: side view", _SKY, _font())
    draw.text((_PANEL + 32, 4), "top view", _SKY, _font())
    row = HEIGHT * _OVERSAMPLING - 36
    draw.text((16, row), f"step {state.steps}", _INK, _font())
    if state.success:
        draw.text((_PANEL - 130, row), "success", _GOOD, _font(26))
    if state.held:
        draw.text((150, row), "slip", _INK, _font())
        draw.rounded_rectangle((200, row + 6, 320, row + 22), 6, fill=_MAT, outline=_INK, width=2)
        if state.slip > 0.0:
            draw.rectangle((203, row + 9, 203 + 114 * state.slip, row + 19), fill=_WARN)


def _box(draw: ImageDraw.ImageDraw, corner: Point, opposite: Point, fill: Colour, outline: Colour) -> None:
    draw.rounded_rectangle((*corner, *opposite), 4, fill=fill, outline=outline, width=3)


def _cross(draw: ImageDraw.ImageDraw, centre: Point, size: float) -> None:
    x, y = centre
    draw.ellipse((x - size, y - size, x + size, y + size), outline=_TARGET, width=5)
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=_TARGET)


def _turned(x: float, y: float, yaw: float, dx: float, dy: float, half_x: float, half_y: float) -> list[Point]:
    """Corners of a rectangle in the top view, turned by `yaw` about `(x, y)`; opposite ones along x come first."""
    c, s = float(np.cos(yaw)), float(np.sin(yaw))
    corners = (
        (dx - half_x, dy - half_y),
        (dx + half_x, dy - half_y),
        (dx + half_x, dy + half_y),
        (dx - half_x, dy + half_y),
    )
    return [_top(x + c * u - s * v, y + s * u + c * v) for u, v in corners]
