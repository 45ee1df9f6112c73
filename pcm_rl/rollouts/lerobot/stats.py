"""Statistics of a LeRobot data set, by which policies normalise: exact ones, also of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Stats = dict[str, NDArray[Any]]


def number_stats(values: Tensor) -> Stats:
    """Of numbers ``[n]`` or vectors ``[n, N]``: each statistic ``[1]`` or ``[N]``."""
    found = (values.byte() if values.dtype == torch.bool else values).reshape(len(values), -1).numpy()
    exact = found.astype(np.float64)
    quantiles = np.quantile(exact, list(QUANTILES.values()), axis=0)
    return {
        "min": found.min(0),
        "max": found.max(0),
        "mean": exact.mean(0),
        "std": exact.std(0),
        "count": np.array([len(found)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def histogram(frames: Tensor) -> Tensor:
    """How often each of a channel's 256 values occurs in ``[n, 3, H, W]`` uint8: ``[3, 256]`` int64."""
    channels = frames.transpose(0, 1).flatten(1)
    return torch.stack([torch.bincount(channel.int(), minlength=256) for channel in channels])


def image_stats(counts: Tensor, frames: int) -> Stats:
    """Of all pixels of ``frames`` images, by their :func:`histogram`: each ``[3, 1, 1]``, where 1 is white."""
    share = (counts / counts.sum(1, keepdim=True).double()).numpy()
    values = np.arange(256) / 255
    mean = share @ values
    below = share.cumsum(1) + 1e-12  # what a sum of shares is rounded by
    present = share > 0
    stats = {
        "min": values[present.argmax(1)],
        "max": values[255 - present[:, ::-1].argmax(1)],
        "mean": mean,
        "std": np.sqrt((share * (values - mean[:, None]) ** 2).sum(1)),
        **{name: values[(below >= chance).argmax(1)] for name, chance in QUANTILES.items()},
    }
    return {**{name: value.reshape(3, 1, 1) for name, value in stats.items()}, "count": np.array([frames])}


def as_lists(stats: Mapping[str, Stats]) -> dict[str, dict[str, Any]]:
    """As JSON and Parquet have them."""
    return {name: {key: value.tolist() for key, value in part.items()} for name, part in stats.items()}
