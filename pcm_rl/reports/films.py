"""Films of evaluated episodes: their recorded chunks are executed again in an environment that renders.

The simulators repeat bit for bit. So an evaluation does not need to render, and the film shows exactly the counted
episode.
"""

from __future__ import annotations

import contextlib
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tensordict import TensorDictBase
from torch import Tensor

from pcm_rl.config import EnvConfig
from pcm_rl.envs import ChunkedEnv
from pcm_rl.episodes import CHUNK, IS_PAD, label_episodes
from pcm_rl.phases import Phase
from pcm_rl.reports.animation import label_font
from pcm_rl.reports.colors import PAPER_COLOR, TEXT_COLOR, phase_color
from pcm_rl.rollouts.environments import make_task, phase_rule
from pcm_rl.rollouts.evaluate import Evaluation, place

FRAME_STEP = 2  # environment steps per frame: 10 frames per second for LIBERO's 20 Hz
STRIP = 72  # pixels of text below a picture


@dataclass(frozen=True, eq=False)
class Film:
    """One episode, with a frame every few steps; the last frame shows its end.

    Attributes:
        frames: ``[F, H, W, 3]`` uint8.
        step: Number of steps executed when each frame was taken, ``[F]`` int64, from 1.
        phase: Phase of that step's chunk, ``[F]`` int64.
        steps: Steps of the whole episode.
        success: Outcome of the recorded episode.
        task: Its task.
        init_state: Its initial state within the task, as text; with several tasks it names the task too.
        instruction: The episode's instruction; None where the environment gives none.
        fps: Frames per second at real speed.
        frame_step: Steps per frame.
    """

    frames: Tensor
    step: Tensor
    phase: Tensor
    steps: int
    success: bool
    task: int
    init_state: str
    instruction: str | None
    fps: float
    frame_step: int


def film_tasks(config: EnvConfig, evaluation: Evaluation, folder: Path, name: str) -> int:
    """Film the first success and the first failure of each task as mp4, and replace older films of that name.

    Args:
        config: The environment that was evaluated.
        evaluation: The evaluation.
        folder: Where the films go, as ``<name>-task<TT>-<success or failure>.mp4``.
        name: Beginning of the files' names.

    Returns:
        The number of films.

    Raises:
        ConfigError: The environment cannot render frames.
        ImportError: As :func:`require_video`.
    """
    for old in folder.glob(f"{name}-task*.mp4"):
        old.unlink()
    tasks = range(config.num_tasks)
    first = [evaluation.first(success=success, task=task) for task in tasks for success in (True, False)]
    episodes = [index for index in first if index is not None]
    for film in film_episodes(config, evaluation, episodes):
        write_mp4(folder / f"{name}-task{film.task:02d}-{_ending(film.success)}.mp4", film)
    return len(episodes)


def film_episodes(
    config: EnvConfig, evaluation: Evaluation, episodes: Sequence[int], *, frame_step: int = FRAME_STEP
) -> Iterator[Film]:
    """Film some episodes of an evaluation, task by task: one simulator renders at a time.

    Args:
        config: The environment that was evaluated.
        evaluation: The evaluation.
        episodes: Indices of the episodes.
        frame_step: Steps per frame, at least 1.

    Yields:
        A film of each episode, ordered by task.

    Raises:
        ConfigError: The environment cannot render frames.

    Warns:
        RuntimeWarning: An episode had another course or outcome this time.
    """
    for task in sorted({int(evaluation.task[i]) for i in episodes}):
        env = make_task(config, task, render_mode="rgb_array")
        with contextlib.closing(env):
            for i in episodes:
                if int(evaluation.task[i]) == task:
                    yield _film(config, env, evaluation, i, frame_step)


def _film(config: EnvConfig, env: gym.Env, evaluation: Evaluation, index: int, frame_step: int) -> Film:
    task, init_state = place(config, int(evaluation.init_state[index]))
    steps = int(evaluation.steps[index])
    where = f"{init_state} of task {task}" if config.num_tasks > 1 else str(init_state)
    rows, success = evaluation.episode(index), bool(evaluation.outcome[index])
    frame_steps = [*range(1, steps, frame_step), steps]
    frames, played, replay_won = replay(env, rows, init_state, frame_steps, success=config.success)
    if (played, replay_won) != (steps, success):
        warnings.warn(
            f"the film of initial state {where} shows another episode than the one evaluated: "
            f"{_ending(replay_won)} after {played} steps instead of {_ending(success)} after {steps}; does the "
            "environment repeat exactly?",
            RuntimeWarning,
            stacklevel=3,
        )
    step = torch.tensor(frame_steps[: len(frames)])
    phase = label_episodes(rows, **phase_rule(config)).repeat_interleave((~rows.get(IS_PAD)).sum(-1))
    return Film(
        frames=frames,
        step=step,
        phase=phase[step - 1],
        steps=steps,
        success=success,
        task=task,
        init_state=where,
        instruction=evaluation.instruction[index],
        fps=env.metadata.get("render_fps", 20) / frame_step,
        frame_step=frame_step,
    )


def replay(
    env: gym.Env, rows: TensorDictBase, init_state: int, frame_steps: Sequence[int], *, success: str | None = None
) -> tuple[Tensor, int, bool]:
    """Execute the chunks of one episode again.

    Args:
        env: Environment that steps single actions and renders frames.
        rows: ``[N]`` rows of the episode.
        init_state: Its initial state, in ``env``'s numbering.
        frame_steps: Steps after which a frame is taken, counted from 1, increasing.
        success: Key of ``info`` that holds success, if it is not ``success``.

    Returns:
        ``frames [F, H, W, 3]`` uint8, the number of steps played, and whether the episode succeeded. F is less than
        ``len(frame_steps)`` where it ends early.
    """
    camera = _Camera(env, frame_steps)
    chunked = ChunkedEnv(camera, rows.get(CHUNK).shape[1], success=success, record=False)
    chunked.reset(options={"init_state": init_state})
    succeeded = False
    for chunk in rows.get(CHUNK).numpy():
        _, _, terminated, truncated, info = chunked.step(chunk)
        succeeded = bool(info["success"])
        if terminated or truncated:
            break
    return torch.from_numpy(np.stack(camera.frames)), camera.steps, succeeded


class _Camera(gym.Wrapper[Any, Any, Any, Any]):
    """Counts steps and renders a frame after each of ``frame_steps``."""

    def __init__(self, env: gym.Env, frame_steps: Sequence[int]) -> None:
        super().__init__(env)
        self._frame_steps, self.steps = frozenset(frame_steps), 0
        self.frames: list[NDArray[np.uint8]] = []

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        answer = self.env.step(action)
        self.steps += 1
        if self.steps in self._frame_steps:
            frame: Any = self.env.render()
            self.frames.append(np.asarray(frame, dtype=np.uint8))
        return answer


def save_recording(path: Path, film: Film) -> None:
    """Write a film for the report."""
    about = {"success": str(film.success).lower(), "init_state": film.init_state, "frame_step": str(film.frame_step)}
    if film.instruction is not None:
        about["instruction"] = film.instruction
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"frames": film.frames.contiguous(), "phase": film.phase.contiguous()}, path, about)


def require_video() -> Any:
    """The module that writes mp4 files.

    Raises:
        ImportError: It is not installed; the message says how to get it.
    """
    try:
        import imageio.v2
        import imageio_ffmpeg  # noqa: F401 - the plugin that writes mp4
    except ImportError as error:
        raise ImportError(f'films need imageio and its ffmpeg ({error}); run: pip install "pcm_rl[video]"') from error
    return imageio.v2


def write_mp4(path: Path, film: Film) -> None:
    """Write a film with its captions (see :func:`captioned`) as H.264, at real speed.

    Raises:
        ImportError: As :func:`require_video`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"codec": "libx264", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    with require_video().get_writer(path, fps=film.fps, **options) as writer:
        for picture in captioned(film):
            writer.append_data(picture)


def captioned(film: Film) -> NDArray[np.uint8]:
    """The frames with a strip below them: the instruction, in three lines at most, and step, phase and outcome.

    Returns:
        ``[F, H + STRIP, W, 3]`` uint8, height and width rounded up to even numbers, as H.264 needs them.
    """
    _, height, width, _ = film.frames.shape
    text = film.instruction or f"initial state {film.init_state}"
    font = label_font(11)
    lines = textwrap.wrap(text, int(width / font.getlength("n")), max_lines=3, placeholder="…")
    blank = Image.new("RGB", (width + width % 2, height + STRIP + height % 2), PAPER_COLOR)
    ImageDraw.Draw(blank).multiline_text((6, height + 4), "\n".join(lines), TEXT_COLOR, font, spacing=2)
    pictures = []
    for frame, step, phase in zip(film.frames.numpy(), film.step.tolist(), film.phase.tolist(), strict=True):
        picture = blank.copy()
        picture.paste(Image.fromarray(frame), (0, 0))
        draw, middle = ImageDraw.Draw(picture), height + STRIP - 13
        name = Phase(phase).label if phase >= 0 else ""
        end = f" · {_ending(film.success)}" if step == film.steps else ""
        draw.text((6, middle), f"step {step}/{film.steps}{end}", fill=TEXT_COLOR, font=font, anchor="lm")
        draw.text((width - 22, middle), name, fill=TEXT_COLOR, font=font, anchor="rm")
        draw.rectangle((width - 17, middle - 5, width - 7, middle + 5), fill=phase_color(phase))
        pictures.append(np.asarray(picture))
    return np.stack(pictures)


def _ending(success: bool) -> str:
    return "success" if success else "failure"
