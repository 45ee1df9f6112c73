from __future__ import annotations

import builtins
import contextlib

import numpy as np
import pytest
import torch

from pcm_rl.config import ConfigError, load_config
from pcm_rl.reports import films
from pcm_rl.reports.animation import animate_recording
from pcm_rl.reports.run_end import film_run
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.rollouts.evaluate import evaluate
from pcm_rl.training.build import make_policy

TWO = ["env.id=pcm_rl/Reach-v0", "env.tasks={horizon: [20, 21]}", "env.num_states=8", "env.eval_states=2"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Four episodes of two tasks of 20 and 21 steps, all failures: the policy is not trained."""
    config = load_config(
        None, [*TWO, "env.num_envs=2", "policy.state.width=16", f"run_dir={tmp_path_factory.mktemp('runs')}"]
    )
    torch.manual_seed(0)
    states = torch.tensor([1, 9, 3, 11])
    with contextlib.closing(make_vector_env(config.env)) as env:
        policy = make_policy(config, env)
        return config, evaluate(env, policy, states, 4, seed=0, task=states // 8)


def test_a_film_shows_the_episode_that_was_counted(evaluated, recwarn):
    config, evaluation = evaluated
    first, second = films.film_episodes(config.env, evaluation, [3, 0])  # by task, whatever the order asked for
    assert (first.task, first.init_state, second.task, second.init_state) == (0, "1 of task 0", 1, "3 of task 1")
    assert first.step.tolist() == [*range(1, 20, 2), 20] and second.step.tolist() == [*range(1, 21, 2), 21]
    for film in (first, second):
        assert film.frames.shape == (11, 240, 480, 3) and film.frames.dtype == torch.uint8
        assert film.phase.shape == (11,) and film.phase.min() >= 0 and not film.success
        assert (film.frames[1:] != film.frames[:-1]).flatten(1).any(1).all(), "it moves"
    assert first.fps == 10.0
    assert not [warning for warning in recwarn if "another episode" in str(warning.message)]


def test_a_replay_that_ends_otherwise_is_said(evaluated):
    _, evaluation = evaluated
    shorter = load_config(None, [*TWO, "env.tasks={horizon: [9, 9]}"])
    with pytest.warns(RuntimeWarning, match="failure after 9 steps instead of failure after 20"):
        (film,) = films.film_episodes(shorter.env, evaluation, [0])
    assert film.step.tolist() == [1, 3, 5, 7, 9] and len(film.frames) == len(film.phase) == 5


def test_captions_stand_below_the_picture(evaluated):
    config, evaluation = evaluated
    (film,) = films.film_episodes(config.env, evaluation, [1], frame_step=5)
    assert film.step.tolist() == [1, 6, 11, 16, 21]
    pictures = films.captioned(film)
    assert pictures.shape == (5, 240 + films.STRIP, 480, 3)
    assert (pictures[:, :240] == film.frames.numpy()).all(), "nothing is drawn over the picture"
    strip = pictures[:, 240:]
    assert (strip.min((1, 2, 3)) < 80).all(), "dark text on every frame"
    assert (strip[:, :, -3:] == 255).all(), "and none cut off at the right"
    assert len({picture.tobytes() for picture in strip}) == 5, "the step is counted"


def test_mp4_can_be_read_back(evaluated, tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    config, evaluation = evaluated
    (film,) = films.film_episodes(config.env, evaluation, [0])
    path = tmp_path / "films" / "a.mp4"
    films.write_mp4(path, film)
    with imageio.get_reader(path) as reader:
        assert reader.get_meta_data()["fps"] == 10.0
        frames = np.stack([frame for frame in reader])  # its length is not known: list() would ask for it
    assert frames.shape == (11, 240 + films.STRIP, 480, 3)
    difference = np.abs(frames.astype(int) - films.captioned(film).astype(int))
    assert difference.mean() < 8, "the same pictures, but for the compression"


def test_without_imageio_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("imageio"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "pcm_rl\[video\]"'):
        films.require_video()


def test_the_reports_films_replace_older_ones(evaluated):
    config, evaluation = evaluated
    folder = config.folder / "recordings"
    folder.mkdir(parents=True)
    (folder / "success.safetensors").touch()
    lines: list[str] = []
    film_run(config, evaluation, lines.append)
    assert [path.name for path in folder.iterdir()] == ["failure.safetensors"] and not lines
    _, _, frames, about = animate_recording(folder / "failure.safetensors", "Failure")  # what the report reads
    assert frames == 11
    assert about == {"success": "false", "init_state": "1 of task 0", "frame_step": "2"}


def test_an_environment_that_cannot_render_is_said(evaluated, monkeypatch):
    config, evaluation = evaluated

    def refuse(*_, **__):
        raise ConfigError("no display")

    monkeypatch.setattr(films, "make_task", refuse)
    lines: list[str] = []
    film_run(config, evaluation, lines.append)
    assert lines == ["no film: pcm_rl/Reach-v0 cannot render here (no display)"]
