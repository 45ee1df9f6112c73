"""Episodes from one initial state begin with the same observation: without that a group means nothing."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from pcm_rl.config import ConfigError
from pcm_rl.episodes import CHUNK_ID, EPISODE

TOLERANCE = 1e-4  # of a number's scale: a simulator's rounding is far below, another start far above
PIXEL_LEVELS, PIXEL_SHARE = 16, 1e-3  # a renderer's noise: this share of an image may differ by more than the levels


class DifferentStarts(ConfigError):
    """Episodes from one initial state begin with different observations."""


def first_observations(rows: TensorDictBase) -> dict[NestedKey, Tensor]:
    """What each episode of ``rows [M]`` begins with, by key: ``[I, ...]``, ordered by episode id."""
    first = (rows.get(CHUNK_ID) == 0).nonzero().flatten()
    first = first[rows.get(EPISODE)[first].argsort()]
    keys = [key for key in rows.keys(True, True) if isinstance(key, tuple) and key[0] == "observation"]
    return {key: rows.get(key)[first] for key in keys}


def check_starts(rows: TensorDictBase, init_state: Tensor) -> None:
    """Compare the first observations of all episodes from the same initial state.

    Numbers may differ by 1e-4 of their scale, and one pixel in a thousand by more than 16 of 256 levels: simulators
    and renderers round. Different starts that look the same cannot be seen.

    Args:
        rows: ``[M]`` rows of whole episodes.
        init_state: Initial state of each episode, ``[I]``, ordered by episode id.

    Raises:
        DifferentStarts: If two differ by more.
    """
    _, state = torch.unique(init_state, return_inverse=True)
    example = torch.full((int(state.max()) + 1,), len(state)).scatter_reduce(0, state, torch.arange(len(state)), "amin")
    compared = example[state]  # [I], the first episode from the same initial state
    if torch.equal(compared, torch.arange(len(state))):
        return
    for key, observed in first_observations(rows).items():
        expected = observed[compared]
        if torch.equal(observed, expected):  # the usual case, and fast
            continue
        wrong = _differing(observed, expected)  # [I, ...]
        if bool(wrong.any()):
            episode = int(wrong.flatten(1).any(1).nonzero()[0])
            raise DifferentStarts(_message(key, wrong[episode], int(init_state[episode])))


def _differing(observed: Tensor, expected: Tensor) -> Tensor:
    """The entries ``[I, ...]`` that are not the same start."""
    if observed.dtype == torch.uint8 and observed.ndim == 4:
        wrong = (observed.int() - expected.int()).abs() > PIXEL_LEVELS
        return wrong & (wrong.flatten(1).double().mean(1) > PIXEL_SHARE).view(-1, 1, 1, 1)
    if not observed.is_floating_point():
        return observed != expected
    # of each number, but not below a tenth of the largest: what hovers around 0 has no scale of its own
    size = observed.double().abs().nan_to_num(0.0, 0.0, 0.0)
    scale = torch.maximum(size.amax(0), 0.1 * size.max())
    return (observed.double() - expected.double()).abs() > TOLERANCE * scale


def _message(key: NestedKey, wrong: Tensor, init_state: int) -> str:
    name = ".".join(key) if isinstance(key, tuple) else key
    return (
        f"two episodes from initial state {init_state} begin with different observations ({int(wrong.sum())} of "
        f"{wrong.numel()} numbers of {name} differ), so their outcomes cannot be compared as a group: does the "
        "environment ignore reset(options={'init_state': k})? Where reset(seed=k) makes the start, give "
        "env.init_state=seed (pcm_rl.envs.SeededStates), and let the environment draw from its self.np_random only. "
        "Where the observations are noisy on purpose, give env.same_starts=false"
    )
