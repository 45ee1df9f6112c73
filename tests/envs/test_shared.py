"""SharedObservation: what is written on one side is read on the other."""

import os
import re

import numpy as np
import pytest
from gymnasium import spaces

from pcm_rl.envs.shared import SharedObservation, free_memory

NAME = f"pcm_rl-test-{os.getpid()}"
BOX = spaces.Box(-1, 1, (3,), np.float32)
NESTED = spaces.Dict(
    {
        "flag": spaces.MultiBinary(5),  # one byte each: what follows is not aligned by itself
        "robot": spaces.Dict({"joints": spaces.Box(-4, 4, (2, 3), np.float64), "stage": spaces.Discrete(9)}),
        "image": spaces.Box(0, 255, (4, 5, 3), np.uint8),
    }
)


@pytest.mark.parametrize("space", [BOX, NESTED, spaces.Discrete(7)], ids=["box", "dict", "discrete"])
def test_both_sides_see_the_last_observation(space):
    theirs = SharedObservation(space, NAME, create=True)
    ours = SharedObservation(space, NAME, create=False)
    try:
        nothing = ours.read()
        assert not np.any(nothing["image"] if space == NESTED else nothing)
        for seed in (0, 1):
            space.seed(seed)
            observation = space.sample()
            theirs.write(observation)
            read = ours.read()
            np.testing.assert_equal(read, observation)
            assert space.contains(read) or isinstance(space, spaces.Discrete)
        theirs.write(nothing)
        np.testing.assert_equal(read, observation)  # a copy
    finally:
        theirs.close()
        ours.close()
        ours.close()
        free_memory(NAME)
    with pytest.raises(FileNotFoundError):
        SharedObservation(space, NAME, create=False)
    free_memory(NAME)


def test_what_cannot_be_held_is_refused():
    text = spaces.Text(9)
    with pytest.raises(ValueError, match=rf"{re.escape(str(text))} cannot be shared between processes"):
        SharedObservation(spaces.Dict({"told": text}), NAME, create=True)
    memory = SharedObservation(BOX, NAME, create=True)
    try:
        with pytest.raises(ValueError, match=rf"has shape \(1,\), but its space is {re.escape(str(BOX))}"):
            memory.write(np.zeros(1, np.float32))  # NumPy would spread it over all three
    finally:
        memory.close()
        free_memory(NAME)
