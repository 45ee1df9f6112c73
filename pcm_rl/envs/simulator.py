"""What simulators share: numbered initial states, success that stays, a horizon, and an end at the success."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from pcm_rl.envs.options import checked_action, chosen_init_state

ObsType = TypeVar("ObsType")
FloatArray = NDArray[np.float64]

OBSERVATION_LIMIT = 10.0  # states are clipped to this; no position within a robot's reach is near it


class SimulatorEnv(gymnasium.Env[ObsType, NDArray[np.float32]], abc.ABC):
    """One task of a simulator that is built once and reset to one of several initial states.

    **Reward** is 1 at the step of the first success, and 0 at every other. `info["success"]` is true from that step on.

    A subclass sets `_simulation`, `_init_states`, `instruction`, `horizon`, `action_space` and `observation_space`, and
    implements the abstract methods.

    Args:
        render_mode: `None`, or `rgb_array` for :meth:`render`.
        stop_on_success: Terminate at the first success; otherwise go on to the horizon.

    Raises:
        ValueError: The render mode is not one of these.
    """

    instruction: str
    horizon: int
    _simulation: Any = None
    _init_states: Sequence[Any] | NDArray[Any]
    _action_type: type[np.floating[Any]] = np.float64
    _step_limit: int | None = None  # steps after which the simulator itself refuses to continue

    def __init__(self, *, render_mode: str | None, stop_on_success: bool) -> None:
        """Starts without a simulation: an environment whose simulation cannot be built can still be closed."""
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; expected None or 'rgb_array'")
        self.render_mode, self.stop_on_success = render_mode, stop_on_success
        self._init_state: int | None = None
        self._elapsed, self._succeeded = 0, False

    @property
    @abc.abstractmethod
    def _task_name(self) -> str:
        """Suite and task, for errors."""

    @abc.abstractmethod
    def _restore(self, init_state: Any) -> None:
        """Set the simulation to an entry of `_init_states`."""

    @abc.abstractmethod
    def _advance(self, action: NDArray[Any]) -> dict[str, Any]:
        """Execute one action, already checked; returns the entries of the info beside `success`."""

    @abc.abstractmethod
    def _succeeds(self) -> bool:
        """Whether the task is solved in the present state; called after each step until the first success."""

    @abc.abstractmethod
    def _observation(self, *, last: bool) -> ObsType:
        """The present observation; `last` is true at the start and the end of an episode."""

    @abc.abstractmethod
    def _frame(self) -> NDArray[np.uint8]:
        """The present view, `[H, W, 3]`, upright."""

    @property
    def simulation(self) -> Any:
        """The simulator's environment, for what the observation does not hold."""
        if self._simulation is None:
            raise RuntimeError("the environment is closed; make a new one")
        return self._simulation

    @property
    def num_init_states(self) -> int:
        """Number of initial states the task comes with."""
        return len(self._init_states)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        """Starts an episode from one of the task's initial states.

        Args:
            seed: Seeds the draw of initial states.
            options: `{"init_state": k}` with `k` in `[0, num_init_states)`; without it `k` is drawn.

        Returns:
            The observation, and `{"init_state": k, "success": False, "instruction": str}`.

        Raises:
            ValueError: An option is unknown, or `k` outside its range.
            RuntimeError: The environment is closed.
        """
        super().reset(seed=seed)
        _ = self.simulation  # a closed environment is refused before a state is drawn
        self._init_state = chosen_init_state(options or {}, self.num_init_states, self._task_name, self.np_random)
        self._restore(self._init_states[self._init_state])
        self._elapsed, self._succeeded = 0, False
        info = {"init_state": self._init_state, "success": False, "instruction": self.instruction}
        return self._observation(last=True), info

    def step(self, action: NDArray[np.float32]) -> tuple[ObsType, float, bool, bool, dict[str, Any]]:
        """Executes one action.

        Returns:
            Observation, reward, terminated, truncated, and an info with `"success"`.

        Raises:
            ValueError: The action has another shape or is not finite.
            RuntimeError: The environment is closed, or the simulation has diverged: the state is not finite.
            gymnasium.error.ResetNeeded: No episode is running.
        """
        _ = self.simulation
        limit = self._step_limit
        if self._init_state is None or (limit is not None and self._elapsed >= limit):
            hint = "" if limit is None else f" and after {limit}"
            raise gymnasium.error.ResetNeeded(f"call reset() before the first step(){hint}")
        assert self.action_space.shape is not None
        extra_info = self._advance(checked_action(action, self.action_space.shape[0], self._where(), self._action_type))
        self._elapsed += 1
        first_success = not self._succeeded and self._succeeds()
        self._succeeded = self._succeeded or first_success
        terminated = self.stop_on_success and self._succeeded
        truncated = not terminated and self._elapsed >= self.horizon
        observation = self._observation(last=terminated or truncated)
        return observation, float(first_success), terminated, truncated, {"success": self._succeeded, **extra_info}

    def render(self) -> NDArray[np.uint8] | None:
        """Renders the present view, `[H, W, 3]`, upright; `None` without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() was called without render_mode='rgb_array'; it returns None")
            return None
        return self._frame()

    def close(self) -> None:
        """Frees the simulation; a closed environment cannot be stepped. Closing twice is fine."""
        if self._simulation is not None:
            self._simulation.close()
            self._simulation = None

    def _finite(self, state: FloatArray) -> FloatArray:
        """The state, if it is finite."""
        if not np.isfinite(state).all():
            raise RuntimeError(f"the simulation has diverged: the state is not finite in {self._where()}")
        return state

    def _where(self) -> str:
        return f"{self._task_name}, initial state {self._init_state}, step {self._elapsed}"


def clipped_state(state: FloatArray) -> NDArray[np.float32]:
    """A state, in its units, as an observation: float32 within :data:`OBSERVATION_LIMIT`."""
    clipped: NDArray[np.float32] = state.clip(-OBSERVATION_LIMIT, OBSERVATION_LIMIT).astype(np.float32)
    return clipped
