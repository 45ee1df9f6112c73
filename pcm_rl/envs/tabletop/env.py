"""Gymnasium side of the toy table-top tasks: single environments, and a vector environment that executes whole chunks.

Both run on `TabletopCore` and give the same trajectories bit for bit. An episode is named by its initial state, a
nonnegative integer passed as `options={"init_state": k}`; two episodes with the same name start in the same state, on
any machine and whatever ran before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from pcm_rl.envs.tabletop.core import ACTION_DIM, OBSERVATION_DIM, Bools, Ints, TabletopCore, Task
from pcm_rl.envs.tabletop.render import render_frame

Observation = npt.NDArray[np.float32]
Action = npt.NDArray[np.float32]
Frame = npt.NDArray[np.uint8]

FPS: Final = 20
MAX_INIT_STATE: Final = 2**31  # initial states drawn at random are below it; named ones may be larger
_RENDER_MODES: Final = (None, "rgb_array")


class _TabletopEnv(gym.Env[Observation, Action]):
    """One table-top environment; see `PickPlaceEnv` and `ReachEnv`."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 (Gymnasium's own style)
    _task: Task

    def __init__(self, *, horizon: int = 512, stop_on_success: bool = True, render_mode: str | None = None) -> None:
        _check_render_mode(render_mode)
        self.render_mode, self.horizon = render_mode, horizon
        self.observation_space = _observation_space()
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self._core = TabletopCore(1, self._task, horizon=horizon, stop_on_success=stop_on_success)
        self._started = False

    @property
    def core(self) -> TabletopCore:
        """The dynamics behind this environment, a batch of one."""
        return self._core

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: seeds the draw of initial states that are not named.
            options: may hold `"init_state"`, a nonnegative integer; without it one is drawn.

        Returns:
            Observation float32 `[26]` and `{"init_state": int, "success": False}`.

        Raises:
            ValueError: if an option is unknown or the initial state is no nonnegative integer.
        """
        super().reset(seed=seed)
        options = _check_options(options, ("init_state",))
        drawn = int(self.np_random.integers(MAX_INIT_STATE)) if "init_state" not in options else 0
        k = _check_init_state(options.get("init_state", drawn), ())
        self._core.reset(k.reshape(1))
        self._started = True
        return self._core.observation()[0], {"init_state": int(k), "success": False}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Executes one step; a finished episode idles until it is reset.

        Args:
            action: `[7]` in [-1, 1]: dx, dy, dz, drx, dry, drz, gripper (> 0 closes); drx and dry do nothing.

        Returns:
            Observation, reward (1 at the step of first success), terminated, truncated, `{"success": bool}`.

        Raises:
            ValueError: if the action has another shape or is not finite.
        """
        if not self._started:
            raise gym.error.ResetNeeded("step was called before reset.")
        reward, _ = self._core.step(_check_action(action, (ACTION_DIM,))[None])
        core = self._core
        terminated, truncated, success = bool(core.terminated[0]), bool(core.truncated[0]), bool(core.success[0])
        return core.observation()[0], float(reward[0]), terminated, truncated, {"success": success}

    def render(self) -> Frame | None:
        """Returns a frame uint8 `[240, 480, 3]`, or None without a render mode."""
        return None if self.render_mode is None else render_frame(self._core.state(0))


class PickPlaceEnv(_TabletopEnv):
    """Grasp an object at a random pose and leave it in a bin: `pcm_rl/PickPlace-v0`.

    Success: the object rests in the bin and the fingers are open. The grasp has to be precise, the transport slow
    enough not to slip, the release low and calm; the constants are in `pcm_rl.envs.tabletop.core`.

    Args:
        horizon: steps after which the episode is truncated.
        stop_on_success: end the episode at the step of success; otherwise it runs to the horizon, success latched.
        render_mode: None or `"rgb_array"`.
    """

    _task: Task = "pick_place"


class ReachEnv(_TabletopEnv):
    """Bring the end effector to a target pose and pinch there: `pcm_rl/Reach-v0`.

    Success: the fingers, open before, close within the tolerances of the target. Fingers that close elsewhere have to
    open again first.

    Args:
        horizon: steps after which the episode is truncated.
        stop_on_success: end the episode at the step of success; otherwise it runs to the horizon, success latched.
        render_mode: None or `"rgb_array"`.
    """

    _task: Task = "reach"


class TabletopVectorEnv(VectorEnv[Observation, Action, Any]):
    """`E` table-top environments that execute whole chunks of `L` actions.

    Every environment stops exactly at its step of success or truncation, also in the middle of a chunk. There is no
    automatic reset: an environment whose episode has ended idles (everything padded, reward 0, flags unchanged) until
    `reset` names it.

    Args:
        num_envs: number of environments `E`.
        task: `"pick_place"` or `"reach"`.
        chunk_length: actions in a chunk, `L`.
        horizon: steps after which an episode is truncated.
        stop_on_success: end the episode at the step of success; otherwise it runs to the horizon, success latched.
        render_mode: None or `"rgb_array"`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own style)
        "render_modes": ["rgb_array"],
        "render_fps": FPS,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        num_envs: int,
        task: Task = "pick_place",
        *,
        chunk_length: int = 8,
        horizon: int = 512,
        stop_on_success: bool = True,
        render_mode: str | None = None,
    ) -> None:
        _check_render_mode(render_mode)
        if chunk_length < 1:
            raise ValueError(f"chunk_length is {chunk_length}, must be at least 1.")
        self.num_envs, self.chunk_length, self.render_mode = num_envs, chunk_length, render_mode
        self.horizon = horizon
        self._core = TabletopCore(num_envs, task, horizon=horizon, stop_on_success=stop_on_success)
        self.single_observation_space = _observation_space()
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (chunk_length, ACTION_DIM), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._started = np.zeros(num_envs, dtype=np.bool_)

    @property
    def core(self) -> TabletopCore:
        """The dynamics behind these environments."""
        return self._core

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts new episodes.

        Args:
            seed: seeds the draw of initial states that are not named.
            options: may hold `"init_state"` int `[E]`, and `"reset_mask"` bool `[E]`, True where a new episode starts
                (default everywhere); entries of `init_state` outside the mask are ignored.

        Returns:
            Observation float32 `[E, 26]`, and `{"init_state": int64 [E], "success": bool [E]}`, which describe the
            current episode also of environments that were not reset.

        Raises:
            ValueError: if an option is unknown, or has a wrong shape, type or value.
        """
        super().reset(seed=seed)
        options = _check_options(options, ("init_state", "reset_mask"))
        shape = (self.num_envs,)
        mask = _check_mask(options.get("reset_mask", np.ones(shape, dtype=np.bool_)), shape)
        if "init_state" in options:
            k = _check_init_state(options["init_state"], shape)
        else:
            # always E draws, so that a seed means the same for every mask
            k = self.np_random.integers(MAX_INIT_STATE, size=shape)
        self._core.reset(k, mask)
        self._started |= mask
        return self._core.observation(), {"init_state": self._core.init_state.copy(), "success": self._success()}

    def step(self, actions: Action) -> tuple[Observation, Any, Any, Any, dict[str, Any]]:
        """Executes one chunk in every environment.

        Args:
            actions: `[E, L, 7]` in [-1, 1].

        Returns:
            Observation float32 `[E, 26]` after the last executed step, reward float64 `[E]` (1 if the first success was
            in this chunk), terminated bool `[E]`, truncated bool `[E]`, and a dict of `"action_is_pad"` bool `[E, L]`,
            True where an action was never executed, and `"success"` bool `[E]`.

        Raises:
            ValueError: if the actions have another shape or are not finite.
        """
        if not self._started.all():
            raise gym.error.ResetNeeded("step was called before reset.")
        core = self._core
        chunk = _check_action(actions, (self.num_envs, self.chunk_length, ACTION_DIM))
        reward = np.zeros(self.num_envs)
        pad = np.ones((self.num_envs, self.chunk_length), dtype=np.bool_)
        for j in range(self.chunk_length):
            paid, executed = core.step(chunk[:, j])
            reward += paid
            pad[:, j] = ~executed
        infos = {"action_is_pad": pad, "success": self._success()}
        return core.observation(), reward, core.terminated.copy(), core.truncated.copy(), infos

    def idle(self, mask: Bools) -> None:
        """Ends the episodes of the environments in `mask` bool `[E]` as truncated: they idle until their reset."""
        self._core.truncated |= _check_mask(mask, (self.num_envs,)) & ~self._core.terminated

    def render(self) -> tuple[Frame, ...] | None:
        """Returns one frame uint8 `[240, 480, 3]` for each environment, or None without a render mode."""
        return None if self.render_mode is None else tuple(self.frame(e) for e in range(self.num_envs))

    def frame(self, index: int) -> Frame:
        """Returns the frame uint8 `[240, 480, 3]` of environment `index`, in any render mode."""
        return render_frame(self._core.state(index))

    def _success(self) -> Bools:
        return self._core.success.copy()


def make_pick_place_vector(num_envs: int, **kwargs: Any) -> TabletopVectorEnv:
    """Vector entry point of `pcm_rl/PickPlace-v0`; arguments as of `TabletopVectorEnv`."""
    return TabletopVectorEnv(num_envs, "pick_place", **kwargs)


def make_reach_vector(num_envs: int, **kwargs: Any) -> TabletopVectorEnv:
    """Vector entry point of `pcm_rl/Reach-v0`; arguments as of `TabletopVectorEnv`."""
    return TabletopVectorEnv(num_envs, "reach", **kwargs)


def _observation_space() -> Any:
    # Entries stay near [-1, 1]; 4 leaves room for the longest ways across the table.
    return gym.spaces.Box(-4.0, 4.0, (OBSERVATION_DIM,), np.float32)


def _check_render_mode(render_mode: str | None) -> None:
    if render_mode not in _RENDER_MODES:
        raise ValueError(f"render_mode is {render_mode!r}, expected one of {_RENDER_MODES}.")


def _check_options(options: Mapping[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    options = dict(options or {})
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"unknown reset options {unknown}, expected some of {list(known)}.")
    return options


def _check_init_state(value: Any, shape: tuple[int, ...]) -> Ints:
    k = np.asarray(value)
    if k.shape != shape or k.dtype.kind not in "iu" or (k < 0).any():
        expected = f"nonnegative integers of shape {shape}" if shape else "one nonnegative integer"
        raise ValueError(f"init_state is {value!r}, expected {expected}.")
    return k.astype(np.int64)


def _check_mask(value: Any, shape: tuple[int, ...]) -> Bools:
    mask: Bools = np.asarray(value)
    if mask.shape != shape or mask.dtype != np.bool_:
        raise ValueError(f"reset_mask has shape {mask.shape} and type {mask.dtype}, expected bool of shape {shape}.")
    return mask


def _check_action(action: Any, shape: tuple[int, ...]) -> npt.NDArray[np.floating]:
    checked: npt.NDArray[np.floating] = np.asarray(action)
    if checked.shape != shape:
        raise ValueError(f"action has shape {checked.shape}, expected {shape}.")
    if not np.isfinite(checked).all():
        raise ValueError(f"action holds {int((~np.isfinite(checked)).sum())} entries that are not finite.")
    return checked
