"""The images of an observation, replaced by what a policy's checkpoint expects; the preparation itself is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class PreparedImages:
    """Prepares the named images of a `Dict` observation, and leaves the other images out.

    A frame equal to the last one of its key is not prepared again.

    Args:
        observation_space: Of the environment.
        keys: Which images, at least one.
        size: Height and width in pixels of what `prepare` gives.
        prepare: `[H, W, 3]` uint8 -> `[size, size, 3]` uint8, a new array.

    Raises:
        ValueError: A key is no image of the observation.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], keys: Sequence[str], size: int, prepare: Callable[[Pixels], Pixels]
    ) -> None:
        parts = _checked_parts(keys, observation_space)
        kept = {name: part for name, part in parts.items() if name in keys or not _is_image(part)}
        self.space = spaces.Dict(kept | dict.fromkeys(keys, spaces.Box(0, 255, (size, size, 3), np.uint8)))
        self._prepare, self._last = prepare, dict[str, tuple[Pixels, Pixels]]()
        self._image_keys, self._other_keys = tuple(keys), tuple(name for name in kept if name not in keys)

    def __call__(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The observation with its images prepared, in new arrays."""
        images = {name: self._prepared(name, observation[name]) for name in self._image_keys}
        return images | {name: observation[name] for name in self._other_keys}

    def _prepared(self, name: str, frame: Pixels) -> Pixels:
        # By value: an environment may draw into the same array again. A comparison costs 1 % of the processing.
        last = self._last.get(name)
        if last is None or not np.array_equal(last[0], frame):
            last = self._last[name] = np.array(frame), self._prepare(frame)
        return last[1].copy()


def check_image(image: Pixels) -> None:
    """Refuse what is no image.

    Raises:
        ValueError: It has another dtype or shape than `[H, W, 3]` uint8, or no pixels.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or image.size == 0:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f"the image is {got}; expected a NumPy array [H, W, 3] uint8: move its channels last, scale floats to 255"
        )


def _is_image(space: spaces.Space[Any]) -> bool:
    """Whether it is `[H, W, 3]` or `[3, H, W]` uint8."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    return 3 in (space.shape[0], space.shape[2])


def _checked_parts(keys: Sequence[str], space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """The parts of the observation, of which every key names an image `[H, W, 3]`."""
    if not isinstance(space, spaces.Dict):
        raise ValueError(f"the observation is {space}; expected a Dict with images, as LiberoEnv's 'pixels' or 'both'")
    images = [name for name, part in space.spaces.items() if _is_image(part)]
    if isinstance(keys, str) or not keys:
        raise ValueError(f"keys is {keys!r}; expected a tuple of at least one image; the observation has {images}")
    for key in keys:
        part = space.spaces.get(key)
        if part is None:
            raise ValueError(f"keys has {key!r}, which the observation lacks; name some of its images, {images}")
        if not _is_image(part) or part.shape is None or part.shape[2] != 3:
            raise ValueError(
                f"{key!r} is {part}; expected [H, W, 3] uint8: name images only, {images}, and move channels last"
            )
    return dict(space.spaces)
