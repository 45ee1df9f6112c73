"""Several tasks as one environment, so that one policy can be trained on a suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium


class MultiTaskEnv(gymnasium.Env[Any, Any]):
    """T tasks of S initial states each: initial state `k` of this environment is state `k % S` of task `k // S`.

    A simulator is built at the first episode of its task and kept, since building takes seconds. All tasks have the
    observation and action spaces of the first.

    Args:
        make_task: Builds the environment of task `t`, `0 <= t < T`; its `reset` takes the option `init_state`.
        num_tasks: T, at least 1.
        states_per_task: S, at least 1.
        keep: Simulators that are kept, at least 1; the one whose task was played longest ago is closed. A simulator of
            LIBERO with a camera takes nearly a gigabyte. None keeps all.

    Raises:
        ValueError: A count below 1.
    """

    def __init__(
        self,
        make_task: Callable[[int], gymnasium.Env],
        num_tasks: int,
        states_per_task: int,
        *,
        keep: int | None = None,
    ) -> None:
        if num_tasks < 1 or states_per_task < 1:
            raise ValueError(f"{num_tasks} tasks of {states_per_task} initial states; expected at least 1 of each")
        if keep is not None and keep < 1:
            raise ValueError(f"keep is {keep}; expected at least 1 simulator, or None for all")
        self.num_tasks, self.states_per_task = num_tasks, states_per_task
        self._keep = num_tasks if keep is None else keep
        self._make_task = make_task
        self._envs: dict[int, gymnasium.Env] = {}  # the one that was played last is the last
        self._task = 0
        first = self._envs[0] = make_task(0)
        self.observation_space, self.action_space = first.observation_space, first.action_space
        self.metadata, self.render_mode = first.metadata, first.render_mode

    @property
    def current(self) -> gymnasium.Env:
        """The environment of the task that is being played."""
        return self._envs[self._task]

    @property
    def draw_cameras(self) -> bool:
        """Whether the tasks draw their cameras at every step; see :class:`pcm_rl.envs.libero.env.LiberoEnv`."""
        return bool(getattr(self.current.unwrapped, "draw_cameras", True))

    @draw_cameras.setter
    def draw_cameras(self, value: bool) -> None:
        if hasattr(self.current.unwrapped, "draw_cameras"):
            self.current.unwrapped.draw_cameras = value

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Seeds the draw of a start where none is given.
            options: `{"init_state": k}` with `k` in `[0, T * S)`; other options go to the task.

        Returns:
            The task's observation and info, with `"init_state"` as `k` and `"task"` as the task.

        Raises:
            ValueError: `k` is outside its range, or a task has other spaces than the first.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        total = self.num_tasks * self.states_per_task
        start = int(options.pop("init_state", self.np_random.integers(total)))
        if not 0 <= start < total:
            raise ValueError(
                f"init_state is {start}; {self.num_tasks} tasks of {self.states_per_task} states have 0 to {total - 1}"
            )
        task, state = divmod(start, self.states_per_task)
        observation, info = self._switch(task).reset(seed=seed, options={**options, "init_state": state})
        return observation, {**info, "init_state": start, "task": task}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step of the task that is being played."""
        return self.current.step(action)

    def render(self) -> Any:
        """A frame of the task that is being played."""
        return self.current.render()

    def close(self) -> None:
        """Closes every simulator that was built."""
        for env in self._envs.values():
            env.close()
        self._envs.clear()

    def _switch(self, task: int) -> gymnasium.Env:
        env = self._envs.pop(task, None)
        if env is None:
            while len(self._envs) >= self._keep:  # before another is built
                self._envs.pop(next(iter(self._envs))).close()
            env = self._make_task(task)
            if env.observation_space != self.observation_space or env.action_space != self.action_space:
                spaces = f"{env.observation_space} and {env.action_space}"
                env.close()
                raise ValueError(
                    f"task {task} has the spaces {spaces}; one policy needs those of task 0, {self.observation_space} "
                    f"and {self.action_space}"
                )
        self._envs[task], self._task = env, task
        return env
