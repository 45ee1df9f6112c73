"""LIBERO's latencies without LIBERO: an environment that sleeps as long as a simulator takes, with images of its size.

    pcm-rl train --config RECIPE env.import_module=latencies env.id=Latencies-v0 "env.kwargs={chunk_s: 0.1}"

with ``benchmarks`` on ``PYTHONPATH``. Observations, instructions, actions, initial states and the end of an episode are
those of ``pcm_rl/Libero-v0`` with one camera. A chunk takes ``chunk_s`` seconds: 0.26 with two cameras rendered in
software, as measured on LIBERO, 0.10 with faster rendering (an assumption). Sleeping needs no core, so what simulators
take from each other is not in it.

Half of the episodes succeed, and the actions of their first chunk say which: groups have both outcomes whatever the
policy, and an episode that is played again ends as before. A success comes at the end of chunk 18; the other episodes
run to the horizon.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pcm_rl.envs.simulator import SimulatorEnv

ID = "Latencies-v0"
OBJECTS = (
    "alphabet soup", "cream cheese", "salad dressing", "bbq sauce", "ketchup", "tomato sauce", "butter", "milk",
    "chocolate pudding", "orange juice",
)  # fmt: skip
INIT_STATES = 50
GRAIN = 4  # pixels of one colour; a frame of noise would be another picture for JPEG than a rendered one


class Sleeper:
    """What is there in place of a simulation: it takes time, nothing else.

    Args:
        chunk_s: Mean seconds of a chunk.
        reset_s: Mean seconds of a reset.
        spread: Standard deviation of both, as a share of them; the distribution is a gamma distribution.
    """

    def __init__(self, chunk_s: float, reset_s: float, spread: float) -> None:
        self.chunk_s, self.reset_s, self.spread = chunk_s, reset_s, spread

    def reset(self, seed: Sequence[int]) -> None:
        """Begin an episode, whose times follow from ``seed``."""
        self.random = np.random.default_rng(seed)
        self._sleep(self.reset_s)

    def chunk(self) -> None:
        """A chunk of an episode."""
        self._sleep(self.chunk_s)

    def close(self) -> None:
        """Nothing is held."""

    def _sleep(self, mean: float) -> None:
        shape = 1 / self.spread**2 if self.spread else 0.0
        time.sleep(mean * (self.random.gamma(shape, 1 / shape) if shape else 1.0))


class LatencyEnv(SimulatorEnv[dict[str, NDArray[Any]]]):
    """A task with LIBERO's spaces whose simulation is a :class:`Sleeper`.

    Args:
        task_id: Which of LIBERO-Object's ten instructions.
        chunk_s: Mean seconds of a chunk.
        reset_s: Mean seconds of a reset.
        spread: Standard deviation of both, as a share of them.
        success_chunks: Chunks of an episode that succeeds.
        horizon: Steps of an episode that does not.
        chunk_length: L; the environment sleeps at the first of L steps.
        camera_size: Height and width in pixels of the image.
        render_mode: None; there is nothing to see.

    Raises:
        ValueError: A time is negative, or another argument is outside of its range.
    """

    def __init__(
        self,
        task_id: int = 0,
        *,
        chunk_s: float = 0.26,
        reset_s: float = 0.16,
        spread: float = 0.25,
        success_chunks: int = 18,
        horizon: int = 512,
        chunk_length: int = 8,
        camera_size: int = 256,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode=render_mode, stop_on_success=True)
        if min(chunk_s, reset_s, spread) < 0 or min(success_chunks, horizon, chunk_length) < 1:
            raise ValueError(
                f"chunk_s {chunk_s}, reset_s {reset_s}, spread {spread}; expected at least 0; success_chunks "
                f"{success_chunks}, horizon {horizon}, chunk_length {chunk_length}; expected at least 1"
            )
        if camera_size < GRAIN or camera_size % GRAIN or not 0 <= task_id < len(OBJECTS):
            raise ValueError(
                f"camera_size is {camera_size}, task_id {task_id}; expected a multiple of {GRAIN}, and 0 to "
                f"{len(OBJECTS) - 1}"
            )
        self.task_id, self.horizon, self.size = task_id, horizon, camera_size
        self.success_steps, self.chunk_length = success_chunks * chunk_length, chunk_length
        self.instruction = f"pick up the {OBJECTS[task_id]} and place it in the basket"
        self.draw_cameras = True  # ChunkedEnv sets it to False but for the last step of a chunk
        self._simulation, self._init_states = Sleeper(chunk_s, reset_s, spread), range(INIT_STATES)
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)
        image = spaces.Box(0, 255, (camera_size, camera_size, 3), np.uint8)
        self.observation_space = spaces.Dict({"image": image, "proprio": spaces.Box(-np.inf, np.inf, (8,), np.float32)})

    @property
    def _task_name(self) -> str:
        return f"latencies of task {self.task_id}"

    def _restore(self, init_state: int) -> None:
        self._steps, self._seen, self._start = 0, 0, init_state
        self.simulation.reset((self.task_id, init_state))

    def _advance(self, action: NDArray[Any]) -> dict[str, Any]:
        if self._steps % self.chunk_length == 0:
            self.simulation.chunk()
        if self._steps < self.chunk_length:
            self._seen = zlib.crc32(action.tobytes(), self._seen)
        self._steps += 1
        return {}

    def _succeeds(self) -> bool:
        return self._steps == self.success_steps and self._seen % 2 == 0

    def _observation(self, *, last: bool) -> dict[str, NDArray[Any]]:
        if last or self.draw_cameras:
            self._image = self._frame()
        return {"image": self._image, "proprio": np.full(8, self._steps / self.horizon, np.float32)}

    def _frame(self) -> NDArray[np.uint8]:
        side = self.size // GRAIN
        random = np.random.default_rng((self.task_id, self._start, self._steps))
        return random.integers(256, size=(side, side, 3), dtype=np.uint8).repeat(GRAIN, 0).repeat(GRAIN, 1)


gym.register(ID, entry_point="latencies:LatencyEnv")
