"""The LIBERO simulator as a Gymnasium environment: state observations for CPUs, camera images for VLA policies.

The simulation is LIBERO's own (robosuite 1.4 on MuJoCo, 20 Hz, operational-space control): its tasks, its initial
states, its test of success. Without cameras a step is some twenty times faster, and a policy can be small enough for a
CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pcm_rl.envs.libero import package as libero_package
from pcm_rl.envs.libero.physics import control_step
from pcm_rl.envs.simulator import OBSERVATION_LIMIT, FloatArray, SimulatorEnv, clipped_state

Observation: TypeAlias = "NDArray[np.float32] | dict[str, NDArray[Any]]"

POSITION_UNIT = 0.25  # metres per unit of the absolute positions in an observation
RELATIVE_UNIT = 0.1  # of the positions relative to the end effector: centimetres decide a grasp
FINGER_UNIT = 0.04  # of a finger's joint position: the travel of one finger
FINGER_SPEED_UNIT = 0.1  # metres per second per unit of the speed at which the opening changes
WORKSPACE_CENTRE = (0.55, 0.0, 0.15)  # metres from the robot's base to the origin of the absolute positions

# Steps of an episode as OpenVLA's evaluation has them; the paper, like SimpleVLA-RL, takes 512 for all.
HORIZONS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
OBSERVATIONS = ("state", "pixels", "both")
CAMERA_KEYS = {"agentview": "image", "robot0_eye_in_hand": "wrist_image"}  # camera -> key of the observation
_OTHER_HORIZON = 512

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


class LiberoEnv(SimulatorEnv[Observation]):
    """One task of a LIBERO suite.

    **Action**, `Box(-1, 1, (7,), float32)`: `dx, dy, dz` (1 asks for 5 cm), `drx, dry, drz` (1 asks for 0.5 rad) of the
    end effector, and the gripper, of which only the sign counts: positive closes, negative opens, 0 holds. Values
    outside the box are clipped by the controller. A full travel of the gripper takes about 8 steps.

    **Observation** with `observation="state"`: `Box(-10, 10, (30 + T,), float32)` for a suite of `T` tasks, the same
    for every task of it:

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
    the robot's base. The opening's speed distinguishes a closing gripper from a closed one.

    Target and goal are the first two of the task's objects of interest. A region (a drawer, a burner) is at its site; a
    region without a site is at the body whose name it begins with; a task with one object of interest has it as both
    target and goal. Tasks of `libero_10` with more than two show only the first two.

    With `observation="pixels"` it is a `Dict`: `image` (agent's view) and `wrist_image`, `[H, W, 3]` uint8 and upright,
    and `proprio [8]` float32, LIBERO's own: position of the end effector (m), its rotation as an axis-angle (rad), both
    fingers (m). `"both"` has `state [30 + T]` besides. OpenVLA's checkpoints were trained on frames rotated by 180
    degrees, the mirror image of an upright one: `image[:, ::-1]`.

    A rendered frame costs as much as several steps of physics. A wrapper that uses the last step of a chunk only, as
    :class:`~pcm_rl.envs.chunked.ChunkedEnv` does, sets `draw_cameras` to False for the other steps: they repeat the
    last frame. The end of an episode is always drawn.

    **Reward** is 1 at the step of the first success, and 0 at every other. `info["success"]` is true from that step on.

    Resets are repeatable bit for bit: LIBERO draws the placement of fixtures (cabinets, stoves), which its initial
    states do not hold, from NumPy's global generator at every reset; here that draw always begins from the same seed
    and leaves the caller's generator as it was.

    Args:
        suite: Name of a suite, such as `libero_object`, or of its LIBERO-PRO variants: `libero_object_lan`, `_object`,
            `_swap`, `_task`.
        task_id: Index of the task in the suite.
        horizon: Steps until an episode is truncated, at least 1; settling steps do not count. None takes the suite's
            of `HORIZONS`.
        settle_steps: Steps without motion, the gripper opening, after the initial state is set: objects come to rest.
        observation: `state`, `pixels` or `both`.
        cameras: Cameras of the observation, with their keys in `CAMERA_KEYS`; another camera's key is its name.
        camera_size: Height and width in pixels of a frame, or a pair of them.
        render_mode: `None`, or `rgb_array` for :meth:`render`.
        stop_on_success: Terminate at the first success; otherwise go on to the horizon.

    Raises:
        ImportError: LIBERO, or a system library for rendering, is not installed.
        ValueError: An argument is outside its range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        suite: str = "libero_object",
        task_id: int = 0,
        *,
        horizon: int | None = None,
        settle_steps: int = 10,
        observation: str = "state",
        cameras: Sequence[str] = tuple(CAMERA_KEYS),
        camera_size: int | Sequence[int] = 256,
        render_mode: str | None = None,
        stop_on_success: bool = True,
    ) -> None:
        """Builds the simulation, which takes some seconds."""
        super().__init__(render_mode=render_mode, stop_on_success=stop_on_success)
        if observation not in OBSERVATIONS:
            raise ValueError(f"observation is {observation!r}; expected one of {', '.join(OBSERVATIONS)}")
        self.suite, self.task_id, self.settle_steps = suite, task_id, settle_steps
        self.horizon = _suite_horizon(suite) if horizon is None else horizon
        if self.horizon < 1 or settle_steps < 0:
            raise ValueError(f"horizon {horizon}, settle_steps {settle_steps}; expected at least 1 and at least 0")
        self.height, self.width = _frame_shape(camera_size)

        benchmark = libero_package.load_suite(suite, task_id)
        self.num_tasks: int = benchmark.get_num_tasks()
        self._init_states = libero_package.initial_states(benchmark, task_id)
        drawn = observation != "state"
        self._simulation = libero_package.build_simulation(
            benchmark.get_task_bddl_file_path(task_id), rendering=drawn or render_mode is not None
        )
        self.instruction = libero_package.instruction(suite, benchmark.get_task(task_id), self._simulation)
        names = self._simulation.obj_of_interest
        self.target_name: str = names[0]
        self.goal_name: str = names[min(1, len(names) - 1)]
        self.cameras = self._checked_cameras(cameras) if drawn else {}
        self.draw_cameras = True

        size = _STATE_SIZE + self.num_tasks
        self.observation_slices = {**_STATE_SLICES, "task": slice(_STATE_SIZE, size)}
        self.observation_space = self._space(observation, size)
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)
        self._frames: dict[str, NDArray[np.uint8]] = {}

    @property
    def _task_name(self) -> str:
        return f"{self.suite} task {self.task_id}"

    def _restore(self, init_state: FloatArray) -> None:
        simulation = self.simulation
        with libero_package.fixed_global_seed():
            simulation.reset()
        # Neither a soft reset nor set_init_state clears this; an episode would depend on the one before.
        for robot in simulation.robots:
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        simulation.set_init_state(init_state)
        for _ in range(self.settle_steps):
            control_step(simulation, [0.0] * 6 + [-1.0])

    def _advance(self, action: FloatArray) -> dict[str, Any]:
        control_step(self.simulation, action)  # 0.05 s of simulated time
        return {}

    def _succeeds(self) -> bool:
        return bool(self.simulation.check_success())

    def observe(self) -> NDArray[np.float32]:
        """The privileged state `[30 + T]` of the present moment, float32, whatever the mode of observation.

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
        return clipped_state(self._finite(observation))

    def _frame(self) -> NDArray[np.uint8]:
        return self._draw("agentview")

    def _observation(self, *, last: bool) -> Observation:
        space: spaces.Space[Any] = self.observation_space
        if not isinstance(space, spaces.Dict):
            return self.observe()
        if last or self.draw_cameras:
            self._frames = {key: self._draw(camera) for camera, key in self.cameras.items()}
        parts: dict[str, NDArray[Any]] = {**self._frames, "proprio": self._proprio()}
        return parts | ({"state": self.observe()} if "state" in space.spaces else {})

    def _draw(self, camera: str) -> NDArray[np.uint8]:
        frame = self.simulation.sim.render(self.width, self.height, camera_name=camera)
        return np.ascontiguousarray(frame[::-1])  # OpenGL's first row is the lowest one

    def _proprio(self) -> NDArray[np.float32]:
        robot, data = self.simulation.robots[0], self.simulation.sim.data
        turn = _axis_angle(data.get_body_xquat(robot.robot_model.eef_name))  # of the hand, not of the grip site
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([data.site_xpos[robot.eef_site_id], turn, fingers]).astype(np.float32)

    def _space(self, observation: str, size: int) -> spaces.Space[Any]:
        state = spaces.Box(-OBSERVATION_LIMIT, OBSERVATION_LIMIT, (size,), np.float32)
        if observation == "state":
            return state
        frame = spaces.Box(0, 255, (self.height, self.width, 3), np.uint8)
        parts: dict[str, spaces.Space[Any]] = dict.fromkeys(self.cameras.values(), frame)
        parts["proprio"] = spaces.Box(-np.inf, np.inf, (8,), np.float32)
        return spaces.Dict(parts | ({"state": state} if observation == "both" else {}))

    def _checked_cameras(self, cameras: Sequence[str]) -> dict[str, str]:
        known = self._simulation.sim.model.camera_names
        for camera in cameras:
            if camera not in known:
                raise ValueError(f"unknown camera {camera!r}; {self._task_name} has {', '.join(known)}")
        return {camera: CAMERA_KEYS.get(camera, camera) for camera in cameras}

    def _pose(self, name: str) -> tuple[FloatArray, FloatArray]:
        """Position `[3]` in the world and flattened rotation matrix `[9]` of an object, a fixture or a region."""
        data, bodies = self._simulation.sim.data, self._simulation.env.obj_body_id
        if name in self._simulation.env.object_sites_dict:
            site = self._simulation.sim.model.site_name2id(name)
            return data.site_xpos[site], data.site_xmat[site]
        body = bodies.get(name, next((bodies[owner] for owner in bodies if name.startswith(owner)), None))
        if body is None:
            raise ValueError(f"{name!r} of {self._task_name} has no pose; known: {sorted(bodies)}")
        return data.body_xpos[body], data.body_xmat[body]


def _suite_horizon(suite: str) -> int:
    return next((steps for base, steps in HORIZONS.items() if suite.startswith(base)), _OTHER_HORIZON)


def _frame_shape(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if height < 1 or width < 1:
        raise ValueError(f"camera_size is {size}; expected pixels, at least 1")
    return height, width


def _axis_angle(quaternion: FloatArray) -> FloatArray:
    """`[4]` (w, x, y, z) to axis times angle `[3]`; an angle beyond pi stays so, as in LIBERO's own evaluation."""
    sine = float(np.linalg.norm(quaternion[1:]))
    if sine < 1e-8:
        return np.zeros(3)
    return np.asarray(quaternion[1:] / sine * 2.0 * np.arctan2(sine, quaternion[0]))


def _rotation_6d(flat_matrix: FloatArray) -> FloatArray:
    """The first two columns of a rotation matrix: continuous, unlike quaternions and axis-angles."""
    return np.asarray(flat_matrix.reshape(3, 3)[:, :2].T.reshape(6))
