from dataclasses import replace

import numpy as np
import pytest

from pcm_rl.envs.tabletop.core import TASKS, TabletopCore
from pcm_rl.envs.tabletop.render import HEIGHT, WIDTH, render_frame

BASE = TabletopCore(1)
BASE.reset(np.array([0]))
STATE = BASE.state(0)


def differs(first, second):
    """Whether the side view, and whether the top view differ."""
    changed = (render_frame(first) != render_frame(second)).any(axis=(0, 2))
    return bool(changed[: WIDTH // 2].any()), bool(changed[WIDTH // 2 :].any())


@pytest.mark.parametrize("task", TASKS)
def test_frame_is_a_picture_and_deterministic(task):
    core = TabletopCore(1, task)
    core.reset(np.array([0]))
    frame = render_frame(core.state(0))
    assert frame.shape == (HEIGHT, WIDTH, 3)
    assert frame.dtype == np.uint8
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 10
    np.testing.assert_array_equal(frame, render_frame(core.state(0)))


def test_everything_that_matters_is_visible():
    x, y, z, yaw = STATE.ee
    assert differs(STATE, replace(STATE, ee=(x + 0.02, y, z, yaw))) == (True, True)
    assert differs(STATE, replace(STATE, ee=(x, y + 0.02, z, yaw))) == (False, True)
    assert differs(STATE, replace(STATE, ee=(x, y, z + 0.02, yaw))) == (True, False)
    assert differs(STATE, replace(STATE, ee=(x, y, z, yaw + 0.3))) == (False, True)
    assert differs(STATE, replace(STATE, opening=0.0)) == (True, True)
    assert differs(STATE, replace(STATE, held=True)) == (True, True)
    ox, oy, oz, oyaw = STATE.object
    assert differs(STATE, replace(STATE, object=(ox, oy, oz, oyaw + 0.3))) == (False, True)
    assert differs(STATE, replace(STATE, object=(ox + 0.02, oy, oz, oyaw))) == (True, True)
    held = replace(STATE, held=True)
    assert differs(held, replace(held, slip=0.5)) == (True, False)
    assert differs(STATE, replace(STATE, success=True)) == (True, False)


def test_the_background_is_not_drawn_upon():
    before = render_frame(STATE)
    render_frame(replace(STATE, ee=(0.2, 0.2, 0.05, 1.0), success=True))
    np.testing.assert_array_equal(render_frame(STATE), before)


def test_frames_are_writable_copies():
    frame = render_frame(STATE).copy()
    frame[:] = 0
    assert render_frame(STATE).any()
