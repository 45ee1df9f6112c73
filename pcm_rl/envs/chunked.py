"""Chunks of actions on any Gymnasium environment: one decision every L steps, whole episodes as TensorDicts.

The wrapper contains the loop over a chunk, because success must be tested after every single step. With a test at the
end of each chunk only, seven of eight successes would be paid late, twice or never.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from tensordict import NestedKey, NonTensorData, TensorDict
from torch import Tensor

from pcm_rl import episodes
from pcm_rl.envs.gripper import check_gripper_index, check_threshold, no_gripper
from pcm_rl.envs.info import TRAJECTORY, ChunkInfo
from pcm_rl.envs.observation import observation_readers, read_observation
from pcm_rl.envs.success import Success, SuccessRule
from pcm_rl.episodes import Labeller, label_episodes
from pcm_rl.phases import label_phases

_Row = dict[NestedKey, Tensor]


class ChunkedEnv(gymnasium.Wrapper[Any, NDArray[np.floating], Any, NDArray[np.floating]], RecordConstructorArgs):
    """Executes chunks of L actions, stops at the step of success, and returns whole episodes.

    **Action**: `Box [L, D]`, made from the environment's `Box [D]`. Execution stops at the step at which the task
    succeeds for the first time or the environment ends the episode; the rest of the chunk is never executed.

    **Reward**: the sum over the executed steps. A task that pays 1 on success therefore pays exactly 1 an episode.

    **Info**, at each step: the environment's info of the last executed step, and

    - `"action_is_pad"`: bool `[L]`, True for the steps that were never executed;
    - `"success"`: whether the episode has succeeded by now;
    - `"trajectory"`: at the end of an episode only, a `TensorDict [N]` of its N chunks in the schema of
      :mod:`pcm_rl.episodes`, phases labelled, with `("next", "reward" | "done" | "terminated" | "truncated")`.

    `"episode"` is left to wrappers that write statistics there, Gymnasium's `RecordEpisodeStatistics` and
    Stable-Baselines3's `Monitor`. Outside of this wrapper they count chunks, inside they count steps. Inside they do
    not see an episode that ends at its success while the environment would go on: its statistics are written here, and
    a warning says that their own lists lack it.

    A vector observation (`Box [S]`) is recorded as `("observation", "state")` float32, an image (`Box` uint8 with three
    channels, first or last) as `("observation", "image")` `[3, H, W]`. Of a `Dict` observation, a vector under one of
    `STATE_NAMES` (:mod:`pcm_rl.episodes`) and an image under one of `IMAGE_NAMES` (:mod:`pcm_rl.envs.observation`), or
    the only image of a `Dict` there, are recorded in the same way. Every other key is recorded under `("observation",
    key)`, with the keys of a `Dict` in the `Dict` after it: images as `[3, H, W]`, float64 as float32, other entries as
    they are. Other names are given by :class:`~pcm_rl.envs.parts.ObservationParts`.

    Where the base environment has the attribute `draw_cameras`, it is False for all steps of a chunk except the last:
    only that observation is used, and a rendered frame costs as much as many steps of physics.

    Args:
        env: Environment with a one-dimensional `Box` of floats as its action space.
        chunk_length: L, actions a chunk, at least 1.
        gripper_index: Action dimension that commands the gripper. None where there is no gripper: the labeller gets a
            close fraction of 0, and the default labeller gives every chunk the phase approach.
        close_above: Commands strictly above close the gripper, in the environment's own units.
        closed: `[..., D]` actions -> `[...]` bool, instead of the two above.
        labeller: Phase rule, see :func:`pcm_rl.episodes.label_episodes`.
        success: Key of the environment's info, `callable(env, info) -> bool`, or the name of such a callable as
            `module:function`; called after every step. `"positive_reward"` means a reward above 0. None means
            `info["success"]` or `info["is_success"]` where there is one, else termination with a positive reward; see
            :class:`pcm_rl.envs.success.SuccessRule`.
        record: Build `info["trajectory"]`. False where the rows are recorded elsewhere, as for workers.
        instruction: What the robot is told. None means the reset's `info["instruction"]`, if there is one.
        stop_on_success: End the episode, as terminated, at its first success. False leaves the end to the environment.
        reward: `"sum"` of the environment's rewards, or `"success"`: 1 for the chunk of the first success and 0
            otherwise, for environments with a shaped reward such as MetaWorld's.

    Raises:
        ValueError: An action space, observation space or argument that does not fit.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        chunk_length: int = 8,
        *,
        gripper_index: int | None = -1,
        close_above: float = 0.0,
        closed: Callable[[Tensor], Tensor] | None = None,
        labeller: Labeller = label_phases,
        success: Success | None = None,
        record: bool = True,
        instruction: str | None = None,
        stop_on_success: bool = True,
        reward: Literal["sum", "success"] = "sum",
    ) -> None:
        # For `spec`, without the default labeller: a spec that holds a function cannot be written as JSON.
        arguments = {name: value for name, value in locals().items() if name not in ("self", "env", "__class__")}
        if labeller is label_phases:
            del arguments["labeller"]
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, **arguments)
        super().__init__(env)
        self._chunks = self.action_space = _chunk_space(env.action_space, chunk_length)
        gripper: dict[str, Any] = {"closed": no_gripper if closed is None else closed}
        if closed is None and gripper_index is not None:
            check_gripper_index(gripper_index, self._chunks.shape[1])
            if record and labeller is label_phases:
                check_threshold(self._chunks, gripper_index, "close_above", close_above)
            gripper = {"gripper_index": gripper_index, "close_above": close_above}
        if reward not in ("sum", "success"):
            raise ValueError(f"reward is {reward!r}; expected 'sum' or 'success'")
        self.chunk_length, self.record, self.instruction = chunk_length, record, instruction
        self.stop_on_success, self.reward = stop_on_success, reward
        self._success_rule = SuccessRule(success)
        self._recorder, self._told = _recorder_inside(env), False
        self._return, self._steps, self._started = 0.0, 0, 0.0
        self._skips_frames = hasattr(env.unwrapped, "draw_cameras")
        self._label: Callable[[TensorDict], Tensor] = partial(label_episodes, labeller=labeller, **gripper)
        self._readers = observation_readers(env.observation_space) if record else {}
        self._running = self._succeeded = False
        self._chunk_id = self._group_id = self._episode_id = 0
        self._instruction: str | None = instruction
        self._observation: _Row = {}
        self._rows: list[_Row] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; one that has not ended is dropped.

        Args:
            seed: Passed on.
            options: Passed on, except `"group_id"`, an integer recorded in the episode (default: the reset's
                `info["group_id"]`, else 0). The caller's dict stays as it is.

        Returns:
            The environment's observation, copied, and its info.

        Raises:
            TypeError: `group_id` is not an integer.
        """
        passed = None if options is None else {key: value for key, value in options.items() if key != "group_id"}
        observation, info = self.env.reset(seed=seed, options=passed)
        group = (options or {}).get("group_id", info.get("group_id", 0))
        if not isinstance(group, int | np.integer):
            raise TypeError(f"group_id is {group!r}; expected an integer")
        self._instruction = info.get("instruction") if self.instruction is None else self.instruction
        self._running, self._succeeded = True, False
        self._group_id, self._chunk_id, self._rows = int(group), 0, []
        self._return, self._steps, self._started = 0.0, 0, time.perf_counter()
        return self._observed(observation), dict(info)

    def step(self, action: NDArray[np.floating]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Executes one chunk.

        Args:
            action: `[L, D]`, finite; not clipped.

        Returns:
            Observation after the last executed step (copied), reward, terminated, truncated, info; see the class.

        Raises:
            ValueError: The chunk has another shape or is not finite, or the value that tells success is not binary.
            KeyError: `success` names a key that the info lacks.
            gymnasium.error.ResetNeeded: No episode is running.
        """
        if not self._running:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before step()")
        chunk = self._checked(action)
        row = {**self._observation, episodes.CHUNK: torch.tensor(chunk, dtype=torch.float32)} if self.record else {}
        observation, reward, terminated, truncated, executed, info = self._execute(chunk)
        pad = np.arange(self.chunk_length) >= executed
        self._running = not (terminated or truncated)
        if self.record:
            self._rows.append({**row, **_outcome(pad, reward, terminated, truncated)})
            if not self._running:
                info[TRAJECTORY] = self._trajectory()
        self._chunk_id += 1
        info.update(action_is_pad=pad, success=self._succeeded)
        return self._observed(observation), reward, terminated, truncated, info

    def _execute(self, chunk: NDArray[np.floating]) -> tuple[Any, float, bool, bool, int, dict[str, Any]]:
        total, executed, was_success = 0.0, 0, self._succeeded
        for action in chunk:
            if self._skips_frames:
                self.env.unwrapped.draw_cameras = executed == self.chunk_length - 1  # type: ignore[attr-defined]
            observation, reward, terminated, truncated, info = self.env.step(action)
            executed += 1
            total += float(reward)
            self._succeeded |= self._success_rule(self.env, info, bool(terminated), float(reward), self._where)
            if terminated or truncated or (self._succeeded and self.stop_on_success):
                break
        self._return, self._steps = self._return + total, self._steps + executed
        if self.reward == "success":
            total = float(self._succeeded and not was_success)
        info = ChunkInfo(info)
        if self._succeeded and self.stop_on_success:
            if not (terminated or truncated) and self._recorder is not None:
                self._complete(info, self._recorder)
            terminated = True
        return observation, total, bool(terminated), bool(truncated), executed, info

    def _complete(self, info: dict[str, Any], recorder: str) -> None:
        """Writes the statistics of an episode whose end a recorder inside does not see."""
        info["episode"] = {"r": self._return, "l": self._steps, "t": time.perf_counter() - self._started}
        if not self._told:
            warnings.warn(
                f"{recorder} inside of ChunkedEnv does not see that an episode ends at its success: "
                'info["episode"] is complete, its own lists and files are not. Put it outside, where it counts chunks',
                RuntimeWarning,
                stacklevel=4,
            )
        self._told = True

    @property
    def _where(self) -> str:
        return f"chunk {self._chunk_id} of episode {self._episode_id}"

    def _checked(self, action: Any) -> NDArray[np.floating]:
        """A copy: an environment may write into its action, which must change neither the caller's nor the record."""
        chunk = np.array(action, dtype=self._chunks.dtype)
        if chunk.shape != self._chunks.shape:
            raise ValueError(f"the chunk has shape {chunk.shape}, expected {self._chunks.shape}, at {self._where}")
        if not np.isfinite(chunk).all():
            wrong = np.argwhere(~np.isfinite(chunk))[0].tolist()
            raise ValueError(f"the chunk is {chunk[tuple(wrong)]} at [step, dimension] {wrong}, at {self._where}")
        return chunk

    def _observed(self, observation: Any) -> Any:
        """Records the observation and returns a copy of it: environments reuse buffers, TorchRL edits dicts."""
        if self.record and self._running:
            self._observation = read_observation(self._readers, observation)
        return deepcopy(observation)

    def _trajectory(self) -> TensorDict:
        count = len(self._rows)
        episode = TensorDict({}, batch_size=[count])
        for key in self._rows[0]:
            episode.set(key, torch.stack([row[key] for row in self._rows]))
        for key, value in ((episodes.GROUP, self._group_id), (episodes.EPISODE, self._episode_id)):
            episode.set(key, torch.full((count,), value, dtype=torch.int64))
        episode.set(episodes.CHUNK_ID, torch.arange(count))
        episode.set(episodes.SUCCESS, torch.full((count,), self._succeeded))
        if self._instruction is not None:
            episode.set(episodes.INSTRUCTION, NonTensorData(self._instruction, batch_size=[count]))
        episode.set(episodes.PHASE, self._label(episode))
        self._episode_id += 1
        self._rows = []
        return episode


def _recorder_inside(env: gymnasium.Env) -> str | None:
    """Name of a wrapper that records statistics of episodes, if there is one."""
    while isinstance(env, gymnasium.Wrapper):
        if type(env).__name__ in ("RecordEpisodeStatistics", "Monitor"):  # of Gymnasium, of Stable-Baselines3
            return type(env).__name__
        env = env.env
    return None


def _chunk_space(space: spaces.Space[Any], chunk_length: int) -> spaces.Box[np.floating]:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"ChunkedEnv needs an action space Box [D] of floats (one action a step), got {space}")
    if isinstance(chunk_length, bool) or not isinstance(chunk_length, int | np.integer) or chunk_length < 1:
        raise ValueError(f"chunk_length is {chunk_length!r}; expected an integer of at least 1")
    low, high = (np.tile(bound, (chunk_length, 1)) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=space.dtype.type)


def _outcome(pad: NDArray[np.bool_], reward: float, terminated: bool, truncated: bool) -> dict[NestedKey, Tensor]:
    return {
        episodes.IS_PAD: torch.tensor(pad),
        episodes.REWARD: torch.tensor([reward], dtype=torch.float32),
        episodes.DONE: torch.tensor([terminated or truncated]),
        ("next", "terminated"): torch.tensor([terminated]),
        ("next", "truncated"): torch.tensor([truncated]),
    }
