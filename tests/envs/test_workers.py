"""WorkerVectorEnv: in step as any vector environment, at its own pace, and what happens when a worker fails."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from pcm_rl.envs import ChunkedEnv, chunked_vector_env
from pcm_rl.envs.shared import SharedObservation
from pcm_rl.envs.workers import MAX_BUILDS, Failure, WorkerVectorEnv

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a spawned worker cannot import this module

L, D = 4, 2
CHUNK = np.zeros((L, D), np.float32)
EXITS, HANGS, BREAKS, DIVERGES, REFUSED, WAITS = 100, 101, 102, 103, 104, 105  # initial states that misbehave


class Robot(gymnasium.Env):
    """Succeeds after as many steps as its initial state says; the first chunk of some states goes wrong.

    With `broken_by`, a file, it cannot be built once that file exists; with `opened_by`, one chunk waits for that file.
    """

    def __init__(self, broken_by=None, opened_by=None):
        if broken_by is not None and Path(broken_by).exists():
            raise RuntimeError(f"{broken_by} is there")
        self.opened_by = opened_by
        self.action_space = spaces.Box(-1, 1, (D,), np.float32)
        self.observation_space = spaces.Dict(
            {"state": spaces.Box(-9, 999, (3,), np.float32), "image": spaces.Box(0, 255, (2, 3, 3), np.uint8)}
        )

    def observe(self):
        state = np.array([self.steps, self.init_state, self.np_random.uniform()], np.float32)
        return {"state": state, "image": np.full((2, 3, 3), self.steps, np.uint8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.init_state, self.steps = options["init_state"], 0
        if self.init_state == REFUSED:
            raise ValueError("104 is not an initial state")
        return self.observe(), {"pid": os.getpid(), "told": "lift"}

    def step(self, action):
        self.steps += 1
        if self.init_state == EXITS:
            os._exit(7)
        if self.init_state == HANGS:
            time.sleep(1000)
        if self.init_state == BREAKS:
            raise RuntimeError("the simulation has diverged")
        if self.init_state == DIVERGES:
            np.linalg.inv(np.zeros((2, 2)))
        while self.init_state == WAITS and not Path(self.opened_by).exists():
            time.sleep(0.01)
        success = self.steps == self.init_state
        return self.observe(), float(success), False, self.steps >= 12, {"success": success}


def make(**kwargs):
    return functools.partial(lambda kwargs: ChunkedEnv(Robot(**kwargs), L, record=False), kwargs)


@pytest.fixture(scope="module")
def spawned():
    env = WorkerVectorEnv(make(), 2)
    yield env
    env.close()


@pytest.fixture
def forked(request):
    """``forked(number, timeout=..., **kwargs of Robot)``, closed at the end."""
    built = []

    def build(number, *, timeout=60.0, build_timeout=60.0, **kwargs):
        built.append(
            WorkerVectorEnv(make(**kwargs), number, context="fork", timeout=timeout, build_timeout=build_timeout)
        )
        return built[-1]

    yield build
    for env in built:
        env.close()


def play(env, worker, init_state=6):
    """Starts an episode and waits for it, whatever else happens."""
    env.start(worker, {"init_state": init_state})
    return until(env, worker)


def until(env, worker):
    while True:
        for result in env.wait():
            if result.worker == worker:
                return result


def until_free(env, worker):
    while worker not in env.free:
        assert env.wait() == []


def test_in_step_it_is_the_vector_env_of_one_process(spawned):
    single = chunked_vector_env(Robot, 2, chunk_length=L, workers=False)
    chunks = np.zeros((2, L, D), np.float32)
    assert spawned.single_observation_space == single.single_observation_space
    assert spawned.observation_space == single.observation_space and spawned.action_space == single.action_space
    seen = []
    for env in (single, spawned):
        seen.append([env.reset(seed=3, options={"init_state": np.array([3, 9])})])
        seen[-1] += [env.step(chunks) for _ in range(4)]
        options = {"init_state": np.array([5, 6]), "reset_mask": np.array([False, True])}
        seen[-1] += [env.reset(options=options), env.step(chunks)]
        assert options.keys() == {"init_state"}
    for answers in seen:
        for answer in answers:
            answer[-1].pop("pid", None)
    np.testing.assert_equal(seen[0], seen[1])
    assert [type(part) for part in seen[0][1]] == [type(part) for part in seen[1][1]]
    assert [part.dtype for part in seen[0][1][1:4]] == [part.dtype for part in seen[1][1][1:4]]


def test_each_worker_is_a_process_of_its_own_with_one_thread(spawned):
    pids = spawned.reset(options={"init_state": 1})[1]["pid"].tolist()
    assert len({os.getpid(), *pids}) == 3
    for pid in pids:
        environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
        assert "OMP_NUM_THREADS=1" in environment


def test_nobody_waits_for_another(forked, tmp_path):
    env = forked(2, opened_by=str(tmp_path / "door"))
    play(env, 0, WAITS)
    env.send(0, CHUNK)
    assert env.free == [1]
    answer = play(env, 1, 6)
    steps = []
    while not (answer.terminated or answer.truncated):
        env.send(1, CHUNK)
        answer = until(env, 1)
        steps.append(int((~answer.info["action_is_pad"]).sum()))
    assert steps == [4, 2] and answer.reward == 1.0 and answer.info["success"] is True
    assert answer.observation["state"][:2].tolist() == [6, 6] and answer.observation["image"].max() == 6
    (tmp_path / "door").touch()
    waited = until(env, 0)
    assert waited.observation["state"][:2].tolist() == [4, WAITS] and not waited.terminated
    assert answer.observation["state"][:2].tolist() == [6, 6]  # a copy
    assert env.restarts == 0


@pytest.mark.parametrize(
    ("init_state", "reason"),
    [
        (EXITS, "the process ended with exit code 7"),
        (HANGS, "no answer within 2 s"),
        (BREAKS, "RuntimeError: the simulation has diverged"),
        (DIVERGES, "LinAlgError: Singular matrix"),  # NumPy makes it a ValueError, but it is no complaint
    ],
)
def test_a_failed_worker_is_restarted_while_the_others_go_on(forked, init_state, reason):
    env = forked(2)
    env.played[0].append(5)
    before = play(env, 0, init_state).info["pid"]
    if init_state == HANGS:  # only here: a loaded machine may need longer for the others
        env._workers[0]._timeout = 2.0
    env.send(0, CHUNK)
    assert until(env, 0) == Failure(0, reason)
    env._workers[0]._timeout = 60.0
    assert env.restarts == 1 and env.played[0] == []
    assert play(env, 1).observation["state"][1] == 6  # while the other one is being built
    until_free(env, 0)
    after = play(env, 0)
    assert after.info["pid"] != before and after.observation["state"][1] == 6
    assert not Path(f"/proc/{before}").exists()


def test_a_killed_worker_is_noticed_also_when_idle_or_with_two_commands(forked):
    env = forked(1)
    pid = play(env, 0).info["pid"]
    os.kill(pid, signal.SIGKILL)
    env.start(0, {"init_state": 6})
    env.start(0, {"init_state": 7})
    assert until(env, 0) == Failure(0, "killed by SIGKILL (out of memory?)")
    env.start(0, {"init_state": 8})  # waits in the pipe until the environment is there
    assert until(env, 0).observation["state"][1] == 8
    assert env.restarts == 1


def test_who_waits_is_back_after_some_seconds_and_hears_of_deaths_between_chunks(forked, tmp_path):
    env = forked(2, opened_by=str(tmp_path / "door"))
    play(env, 0, WAITS)
    pid = play(env, 1).info["pid"]  # its next chunk is not there yet
    env.send(0, CHUNK)
    assert env.wait(seconds=0.0) == [] and env.wait(seconds=0.01) == []
    os.kill(pid, signal.SIGKILL)
    assert env.wait() == [Failure(1, "killed by SIGKILL (out of memory?)")]
    until_free(env, 1)
    pid = play(env, 1).info["pid"]
    (tmp_path / "door").touch()
    assert until(env, 0).observation["state"][0] == 4
    env.cancel()  # episodes are forgotten
    os.kill(pid, signal.SIGKILL)
    while env.restarts < 2:
        env.start(0, {"init_state": 6})
        assert all(result.worker == 0 for result in env.wait())


def test_a_later_command_makes_the_earlier_answer_stale(forked):
    env = forked(1)
    for init_state in (3, 4, 5):
        env.start(0, {"init_state": init_state})
    assert until(env, 0).observation["state"][1] == 5
    env.send(0, CHUNK)
    env.cancel()
    assert env.free == [0]
    with pytest.raises(RuntimeError, match="nothing is under way"):
        env.wait()
    assert play(env, 0, 7).observation["state"][1] == 7


def test_a_complaint_is_raised_here_and_costs_no_restart(spawned):
    restarts = spawned.restarts
    spawned.start(0, {"init_state": REFUSED})
    spawned.start(1, {"init_state": 6})
    answers = []
    with pytest.raises(ValueError, match=r"^worker 0: 104 is not an initial state$") as raised:
        while True:
            answers += spawned.wait()
    cause = str(raised.value.__cause__)  # the worker's own traceback
    assert cause.startswith("in the worker:") and "104 is not an initial state" in cause and "in reset" in cause
    answers += [] if answers else spawned.wait()
    assert [answer.worker for answer in answers] == [1]
    spawned.send(1, np.full((L, D), np.nan))
    with pytest.raises(ValueError, match=r"^worker 1: the chunk is nan at \[step, dimension\] \[0, 0\]"):
        spawned.wait()
    spawned.start(1, {})
    with pytest.raises(KeyError, match=r"worker 1: init_state"):
        spawned.wait()
    with pytest.raises(ValueError, match=r"'init_state' has 3 entries, expected 2"):
        spawned.reset(options={"init_state": [1, 2, 3]})
    with pytest.raises(ValueError, match="104 is not an initial state"):
        spawned.reset(options={"init_state": [1, REFUSED]})
    with pytest.raises(ValueError, match="at least one of them True"):
        spawned.reset(options={"init_state": 1, "reset_mask": np.zeros(2, bool)})
    with pytest.raises(ValueError, match="got 1 seeds, expected 2"):
        spawned.reset(seed=[1], options={"init_state": 6})
    spawned.reset(options={"init_state": 6})
    with pytest.raises(ValueError, match=r"shape \(2, 4\), expected \(2, 4, 2\)"):
        spawned.step(np.zeros((2, L)))
    assert spawned.step(np.zeros((2, L, D)))[0]["state"][:, 0].tolist() == [4, 4]
    assert spawned.restarts == restarts


def test_in_step_a_failure_is_an_error_and_a_reset_goes_on(forked):
    env = forked(2)
    env.reset(options={"init_state": [EXITS, 9]})
    with pytest.raises(RuntimeError, match=r"worker 0 failed: .* exit code 7; it is being built anew"):
        env.step(np.zeros((2, L, D)))
    observation, _ = env.reset(options={"init_state": [5, 5], "reset_mask": np.array([True, False])})
    assert observation["state"][0, :2].tolist() == [0, 5]
    assert env.step(np.zeros((2, L, D)))[3].tolist() == [False, False]


def exit_at_once():
    os._exit(3)


def test_what_cannot_be_built_is_an_error_at_construction(tmp_path):
    before = set(multiprocessing.active_children())
    build = functools.partial(WorkerVectorEnv, context="fork")
    with pytest.raises(RuntimeError, match=r"^.*test_workers.py is there$"):
        build(make(broken_by=__file__), 2)
    with pytest.raises(RuntimeError, match=r"worker 0, while it was being built: .* exit code 3; a script .*__main__"):
        build(exit_at_once, 2)
    with pytest.raises(TimeoutError, match=r"worker 0: the environment was not built within 0.5 s"):
        build(lambda: time.sleep(1000), 1, build_timeout=0.5)
    with pytest.raises(ValueError, match="wrap it in ChunkedEnv"):
        build(Robot, 1)
    with pytest.raises(ValueError, match="num_envs is 0"):
        build(make(), 0)
    assert set(multiprocessing.active_children()) == before


def test_building_again_is_not_tried_forever(forked, tmp_path):
    env = forked(1, broken_by=str(tmp_path / "flag"))
    (tmp_path / "flag").touch()
    play(env, 0, EXITS)
    env.send(0, CHUNK)
    assert isinstance(until(env, 0), Failure)
    with pytest.raises(RuntimeError, match=rf"worker 0 could not be built again, {MAX_BUILDS} times in a row: .*flag"):
        while True:
            env.wait()


def test_close_leaves_nothing_behind(forked):
    env = forked(3)
    pids = env.reset(options={"init_state": [6, HANGS, 6]})[1]["pid"]
    env.send(1, CHUNK)
    os.kill(pids[2], signal.SIGKILL)
    names = [worker.link.memory_name for worker in env._workers]
    env.close()
    env.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]  # not even as zombies
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedObservation(env.single_observation_space, name, create=False)
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        env.start(0)


SCRIPT = """
    import os, signal, time
    import gymnasium as gym
    from pcm_rl.envs import ChunkedEnv
    from pcm_rl.envs.workers import WorkerVectorEnv

    def make():
        env = ChunkedEnv(gym.make("pcm_rl/Reach-v0"), record=False)
        os.write(1, b"%d\\n" % os.getpid())  # in one piece: two workers write at once
        time.sleep({sleep})
        return env

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored from birth where tests run in the background
        env = WorkerVectorEnv(make, 2, context="{context}")
        print("built", flush=True)
        time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("context", "sleep", "lines", "stroke"),
    [pytest.param("spawn", 1000, 2, signal.SIGINT, marks=pytest.mark.slow), ("fork", 0, 3, signal.SIGKILL)],
)
def test_workers_end_with_their_parent_and_without_noise(tmp_path, context, sleep, lines, stroke):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(sleep=sleep, context=context)))
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    pids = [line for line in (parent.stdout.readline().strip() for _ in range(lines)) if line != "built"]
    assert len(pids) == 2
    (os.killpg if stroke == signal.SIGINT else os.kill)(parent.pid, stroke)  # Ctrl-C reaches the workers, too
    _, errors = parent.communicate(timeout=60)
    assert errors.count("Traceback") == (stroke == signal.SIGINT), errors
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until, f"{pids} live on"
        time.sleep(0.05)
