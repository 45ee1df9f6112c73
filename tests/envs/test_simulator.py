"""SimulatorEnv on a simulator of three lines; LIBERO's and MetaWorld's tests go through it with theirs."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from pcm_rl.envs.simulator import SimulatorEnv, clipped_state


class Counter:
    """Adds up the actions it is given."""

    closed = False

    def close(self):
        self.closed = True


class CounterEnv(SimulatorEnv):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    instruction, horizon = "count to two", 5
    _step_limit = 7

    def __init__(self, render_mode=None, stop_on_success=True):
        super().__init__(render_mode=render_mode, stop_on_success=stop_on_success)
        self._simulation, self._init_states = Counter(), [0.0, 0.5]
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = spaces.Box(-10, 10, (1,), np.float32)
        self.asked, self.drawn = 0, []

    _task_name = "counter"

    def _restore(self, init_state):
        self.simulation.total = init_state

    def _advance(self, action):
        self.simulation.total += action[0]
        return {"total": float(self.simulation.total)}

    def _succeeds(self):
        self.asked += 1
        return self.simulation.total >= 2

    def _observation(self, *, last):
        self.drawn.append(last)
        return clipped_state(self._finite(np.array([self.simulation.total])))

    def _frame(self):
        return np.zeros((2, 2, 3), np.uint8)


def play(env, steps, value=1.0):
    return [env.step(np.array([value], np.float32)) for _ in range(steps)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_follows_the_gymnasium_contract():
    check_env(CounterEnv(render_mode="rgb_array"), skip_close_check=True)


def test_success_pays_once_stays_and_is_not_asked_for_again():
    env = CounterEnv(stop_on_success=False)
    _, info = env.reset(options={"init_state": 1})
    assert info == {"init_state": 1, "success": False, "instruction": "count to two"}
    steps = play(env, 5)
    assert [step[1] for step in steps] == [0, 1, 0, 0, 0] and env.asked == 2
    assert [step[4]["success"] for step in steps] == [False, True, True, True, True]
    assert [step[2:4] for step in steps] == [(False, False)] * 4 + [(False, True)]
    assert env.drawn == [True, False, False, False, False, True]
    stopping = CounterEnv()
    stopping.reset(options={"init_state": 0})
    assert [step[2:4] for step in play(stopping, 2)] == [(False, False), (True, False)]
    assert stopping.drawn == [True, False, True]


def test_what_is_wrong_names_the_place():
    env = CounterEnv()
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"first step.. and after 7"):
        play(env, 1)
    with pytest.raises(ValueError, match="counter has 0 to 1"):
        env.reset(options={"init_state": 2})
    env.reset(options={"init_state": 1})
    play(env, 1, 0.0)
    with pytest.raises(ValueError, match="counter, initial state 1, step 1"):
        play(env, 1, np.nan)
    env.simulation.total = np.inf
    with pytest.raises(RuntimeError, match=r"diverged.*counter, initial state 1, step 2"):
        play(env, 1)
    play_on = CounterEnv()
    play_on.reset(options={"init_state": 0})
    play(play_on, 7, 0.0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="after 7"):
        play(play_on, 1, 0.0)
    with pytest.raises(ValueError, match="render_mode is 'human'"):
        CounterEnv(render_mode="human")


def test_closing_twice_is_fine_and_a_closed_one_is_refused():
    env = CounterEnv()
    simulation = env.simulation
    env.close()
    env.close()
    assert simulation.closed
    for use in (env.reset, lambda: env.step(np.zeros(1)), lambda: env.simulation):
        with pytest.raises(RuntimeError, match="closed; make a new one"):
            use()


def test_rendering_needs_the_mode():
    assert CounterEnv(render_mode="rgb_array").render().shape == (2, 2, 3)
    with pytest.warns(UserWarning, match="render_mode"):
        assert CounterEnv().render() is None
