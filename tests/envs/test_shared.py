"""SharedObservation: what is written on one side is read on the other, and nothing is left of dead processes."""

import errno
import fcntl
import os
import re
from multiprocessing import resource_tracker
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import pcm_rl.envs.shared as module
from pcm_rl.envs import ChunkedEnv
from pcm_rl.envs.shared import NoRoom, SharedObservation, free_memory, new_name, sweep_memory
from pcm_rl.envs.workers import WorkerVectorEnv

NAME = f"pcm_rl-test-{os.getpid()}"
BOX = spaces.Box(-1, 1, (3,), np.float32)
NESTED = spaces.Dict(
    {
        "flag": spaces.MultiBinary(5),  # one byte each: what follows is not aligned by itself
        "robot": spaces.Dict({"joints": spaces.Box(-4, 4, (2, 3), np.float64), "stage": spaces.Discrete(9)}),
        "image": spaces.Box(0, 255, (4, 5, 3), np.uint8),
    }
)


@pytest.mark.parametrize("space", [BOX, NESTED, spaces.Discrete(7)], ids=["box", "dict", "discrete"])
def test_both_sides_see_the_last_observation(space):
    theirs = SharedObservation(space, NAME, create=True)
    ours = SharedObservation(space, NAME, create=False)
    try:
        nothing = ours.read()
        assert not np.any(nothing["image"] if space == NESTED else nothing)
        for seed in (0, 1):
            space.seed(seed)
            observation = space.sample()
            theirs.write(observation)
            read = ours.read()
            np.testing.assert_equal(read, observation)
            assert space.contains(read) or isinstance(space, spaces.Discrete)
        theirs.write(nothing)
        np.testing.assert_equal(read, observation)  # a copy
    finally:
        theirs.close()
        ours.close()
        ours.close()
        free_memory(NAME)
    with pytest.raises(FileNotFoundError):
        SharedObservation(space, NAME, create=False)
    free_memory(NAME)


def test_what_cannot_be_held_is_refused():
    text = spaces.Text(9)
    with pytest.raises(ValueError, match=rf"{re.escape(str(text))} cannot be shared between processes"):
        SharedObservation(spaces.Dict({"told": text}), NAME, create=True)
    memory = SharedObservation(BOX, NAME, create=True)
    try:
        with pytest.raises(ValueError, match=rf"has shape \(1,\), but its space is {re.escape(str(BOX))}"):
            memory.write(np.zeros(1, np.float32))  # NumPy would spread it over all three
    finally:
        memory.close()
        free_memory(NAME)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def memories():
    names = {path.name for path in Path("/dev/shm").glob("pcm_rl-*")}
    return {name for name in names if str(os.getpid()) in name.split("-")}  # not those of others at work here


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory is no folder here")
def test_too_little_memory_is_refused_with_what_is_needed(monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full)
    space = spaces.Box(0, 255, (512, 1024, 3), np.uint8)
    remedy = r"observations of 80 workers: they need 120\.0 MiB, .* free\. .* --shm-size=192m, or lower env\.num_envs"
    with pytest.raises(NoRoom, match=remedy):
        SharedObservation(space, NAME, create=True, workers=80)
    with pytest.raises(NoRoom, match="observations of 2 workers"):  # the processes are forked, and meet the same
        WorkerVectorEnv(lambda: ChunkedEnv(Still(), record=False), 2, context="fork")
    assert not memories()


class Still(gymnasium.Env):
    observation_space, action_space = BOX, spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory is no folder here")
def test_the_whole_space_is_taken_at_the_start():
    memory = SharedObservation(spaces.Box(0, 255, (512, 1024, 3), np.uint8), NAME, create=True)
    try:
        assert Path("/dev/shm", NAME).stat().st_blocks * 512 >= 512 * 1024 * 3
    finally:
        memory.close()
        free_memory(NAME)


DEAD = 2**22 + 1  # no process has such a number, now or later


def test_leftovers_of_dead_processes_are_swept_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "FOLDER", tmp_path)

    def left(name, age=3600.0):
        path = tmp_path / name
        path.touch()
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
        return path

    swept = left(f"pcm_rl-{DEAD}-{'a' * 16}")
    locked = left(f"pcm_rl-{DEAD}-{'b' * 16}")  # of a process that this one cannot see, as in another container
    young, others = left(f"pcm_rl-{DEAD}-{'c' * 16}", age=-9.0), left(f"pcm_rl-{DEAD}-mine")
    own, foreign = left(new_name()), left("sem.mp-1")
    with locked.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert sweep_memory() == 1
    assert not swept.exists() and all(path.exists() for path in (locked, young, others, own, foreign))
    assert sweep_memory() == 1 and not locked.exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory is no folder here")
def test_a_memory_is_locked_while_its_process_lives_and_swept_afterwards(monkeypatch):
    name = f"pcm_rl-{DEAD}-{os.getpid():016x}"
    monkeypatch.setattr(module, "_OLD", -1.0)
    memory = SharedObservation(BOX, name, create=True)
    sweep_memory()
    assert Path("/dev/shm", name).exists()
    memory.close()
    sweep_memory()
    assert not Path("/dev/shm", name).exists()
    resource_tracker.unregister(f"/{name}", "shared_memory")  # this process lives on, and would miss it at its end


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory is no folder here")
def test_a_memory_whose_process_died_before_it_had_a_size_is_freed():
    Path("/dev/shm", NAME).touch()
    free_memory(NAME)
    assert not Path("/dev/shm", NAME).exists()
