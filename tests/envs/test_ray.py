"""Environments on Ray: the rows are those of local workers, whoever is killed; what cannot be reached is one line."""

import importlib.util
import os
import signal
import socket
import sys

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

import pcm_rl.envs.actor as actor
from pcm_rl.cli import main
from pcm_rl.config import ConfigError, load_config
from pcm_rl.envs import RayCluster, chunked_vector_env
from pcm_rl.envs.cluster import CONNECTION, ClusterError
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.environments import _workers, make_vector_env

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # an actor cannot import this module

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs pcm_rl[ray] (make test-ray)")
L, D = 4, 2
HEARS_SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
HEAD = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEARS_SOON}
STATES, GROUPS = torch.tensor([3, 3, 7, 7, 5, 5]), torch.arange(6) // 2


class Robot(gymnasium.Env):
    """States and images that depend on the initial state and on every action; states are given as float64."""

    def __init__(self):
        self.action_space = spaces.Box(-1, 1, (D,), np.float32)
        self.observation_space = spaces.Dict(
            {"state": spaces.Box(-9, 999, (3,), np.float32), "image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}
        )

    def observe(self):
        image = np.random.default_rng(self.seed_of_image + self.steps).integers(0, 256, (64, 64, 3))
        return {"state": self.state, "image": image.astype(np.uint8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options["init_state"] == 99:
            raise ValueError("99 is not an initial state")
        self.seed_of_image, self.steps = 1000 * options["init_state"], 0
        self.state = np.array([options["init_state"], 0, 1], np.float64) / 3
        return self.observe(), {"threads": os.environ["OMP_NUM_THREADS"]}

    def step(self, action):
        self.steps += 1
        self.state = np.sin(self.state + np.array([*action, 1.0], np.float64))
        return self.observe(), float(self.state.sum()), False, self.steps >= 14, {"success": False}


def same(first, second):
    assert set(first.keys(True, True)) == set(second.keys(True, True)) > {("observation", "image")}
    return bool((first == second).all())


class Deadly:
    """A policy that does something at some of its calls."""

    def __init__(self, policy, deeds):
        self.policy, self.deeds, self.calls = policy, deeds, 0

    def __call__(self, rows):
        self.deeds.get(self.calls, lambda: None)()
        self.calls += 1
        return self.policy(rows)


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return StateTokenPolicy(3, width=16, action_dim=D, chunk_length=L)


@pytest.fixture(scope="module")
def local_rows(policy):
    env = chunked_vector_env(Robot, 2, chunk_length=L, context="fork")
    rows = collected(env, policy)
    env.close()
    return rows


def collected(env, policy):
    torch.manual_seed(1)
    return collect_episodes(env, policy, STATES, GROUPS)


def where(env, worker):
    """Number of the worker's process, and of its machine's raylet."""

    def tell(_):
        return os.getpid(), int(os.environ["RAY_RAYLET_PID"])

    link = env._workers[worker].link
    return link._host.ray.get(link._handle.__ray_call__.remote(tell))


@pytest.fixture(scope="module")
def released():
    yield
    if CONNECTION.users:
        CONNECTION.close()


@pytest.fixture
def own_ray(released):
    """A Ray on this machine alone, which stays for the next test."""
    before = signal.getsignal(signal.SIGTERM)
    if not CONNECTION.users:
        CONNECTION.open(RayCluster())
    assert signal.getsignal(signal.SIGTERM) is before  # Ray would take it over, and a run would not be saved


@pytest.fixture
def no_ray():
    if CONNECTION.users:
        CONNECTION.close()
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@needs_ray
@pytest.mark.filterwarnings("ignore:worker .* is played again")
def test_rows_are_those_of_local_workers_whatever_dies(own_ray, policy, local_rows):
    env = chunked_vector_env(Robot, 2, chunk_length=L, workers=RayCluster())
    try:
        assert same(collected(env, policy), local_rows) and env.restarts == 0
        ray, victims = sys.modules["ray"], [where(env, worker)[0] for worker in range(2)]
        deeds = {
            3: lambda: os.kill(victims[0], signal.SIGKILL),
            7: lambda: ray.kill(env._workers[1].link._handle),
        }
        assert same(collected(env, Deadly(policy, deeds)), local_rows) and env.restarts == 2
        with pytest.raises(ValueError, match="99 is not an initial state"):
            env.reset(options={"init_state": [99, 1]})
        observation, infos = env.reset(options={"init_state": 1})
        assert observation["state"].dtype == np.float32 and infos["threads"].tolist() == ["1", "1"]
    finally:
        env.close()


@needs_ray
def test_a_machine_with_other_versions_is_refused(own_ray, monkeypatch):
    monkeypatch.setattr(actor, "installed", lambda: {"numpy": "0"})  # here, not in the actor
    with pytest.raises(ClusterError, match=r" has numpy .*, and this machine .* 0: .* install the same version"):
        chunked_vector_env(Robot, 1, chunk_length=L, workers=RayCluster())


@needs_ray
def test_what_cannot_be_built_is_an_error_at_construction(own_ray):
    def broken():
        raise RuntimeError("no meshes here")

    with pytest.raises(RuntimeError, match=r"^no meshes here$"):
        chunked_vector_env(broken, 1, chunk_length=L, workers=RayCluster())


@needs_ray
@pytest.mark.slow
def test_a_run_is_that_of_local_workers_and_goes_on(own_ray, tmp_path):
    small = [
        f"run_dir={tmp_path}", "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=96", "env.max_chunks=12", "env.num_envs=2",
        "env.eval_states=2", "eval_episodes=2", "eval_every=0", "groups=3", "group_size=6", "logger=none", "seed=1",
        "record=false", "threads=1", "demos.episodes=20", "sft.steps=500", "policy.state.width=64", "save_every=1",
    ]  # fmt: skip
    assert main(["train", *small, "steps=2", "env.workers=true", "name=local"]) == 0
    assert main(["train", *small, "steps=1", "env.workers=ray", "name=ray"]) == 0
    one = load_file(tmp_path / "ray" / "checkpoint" / "policy.safetensors")
    assert main(["train", "--resume", str(tmp_path / "ray"), "steps=2"]) == 0
    two, local = (load_file(tmp_path / name / "checkpoint" / "policy.safetensors") for name in ("ray", "local"))
    assert all(torch.equal(two[name], local[name]) for name in local)
    assert not all(torch.equal(two[name], one[name]) for name in one)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:worker .* is played again")
def test_a_machine_may_die_and_where_none_is_left_there_is_one_line(no_ray, policy, local_rows):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        env = chunked_vector_env(Robot, 2, chunk_length=L, workers=RayCluster(cluster.address))
        try:
            assert where(env, 0)[1] != where(env, 1)[1]  # spread over both

            def machine_of_first_worker_dies():
                victim, raylet = where(env, 0)
                os.kill(raylet, signal.SIGKILL)
                os.kill(victim, signal.SIGKILL)

            dies = Deadly(policy, {4: machine_of_first_worker_dies})
            assert same(collected(env, dies), local_rows) and env.restarts == 1
            while len(env.free) < 2:  # Ray hears of a dead machine after some seconds
                env.wait()
            assert where(env, 0)[1] == where(env, 1)[1]
            env._host.place_timeout = 1.0
            with pytest.raises(ClusterError, match=r"no place within 1 s\. Each environment asks for 1 CPU, and"):
                collected(env, Deadly(policy, {4: machine_of_first_worker_dies}))
        finally:
            env.close()
        ray = sys.modules["ray"]
        ray.init(address=cluster.address, log_to_driver=False)
        CONNECTION.open(RayCluster(cluster.address))
        with pytest.raises(ClusterError, match=r"is connected to .* already, not to 127\.0\.0\.1:9$"):
            CONNECTION.open(RayCluster("127.0.0.1:9"))
        CONNECTION.close()
        assert ray.is_initialized()  # it was somebody else's
        ray.shutdown()
    finally:
        cluster.shutdown()


@needs_ray
@pytest.mark.parametrize("answers", [False, True])
def test_a_cluster_that_nobody_reaches_is_one_line(no_ray, tmp_path, capsys, answers):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        if not answers:
            silent.close()
        place = [f"run_dir={tmp_path}", f"env.ray.address={address}", "env.ray.timeout=2", "env.num_envs=2"]
        assert main(["train", "env.workers=ray", *place]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pcm-rl: no Ray cluster answers at {address}") and "`ray start --head`" in line


def test_without_the_package_the_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"run: pip install 'pcm_rl\[ray\]'"):
        chunked_vector_env(Robot, 1, chunk_length=L, workers=RayCluster())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduling": "random"}, "scheduling is 'random'; expected one of SPREAD, DEFAULT"),
        ({"num_cpus": -1.0}, "num_cpus is -1.0"),
        ({"timeout": 0.0}, "timeout 0.0; expected"),
        ({"address": "10.0.0.1"}, "expected host:port of the head"),
        ({"address": "ray://10.0.0.1:10001"}, "expected host:port of the head"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RayCluster(**options)
    with pytest.raises(ValueError, match="context is 'fork', and Ray starts its processes itself"):
        chunked_vector_env(Robot, 1, workers=RayCluster(), context="fork")


def test_a_recipe_names_the_cluster():
    recipe = ["env.workers=ray", "env.ray.address=auto", "env.ray.resources.render=1", "env.ray.num_cpus=2"]
    assert _workers(load_config(None, recipe).env) == RayCluster("auto", 2.0, {"render": 1.0})
    assert [_workers(load_config(None, [f"env.workers={value}"]).env) for value in ("true", "false")] == [True, False]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.workers=rays", "env.workers must be true, false or ray, got 'rays'"),
        ("env.workers=2", "env.workers must be true, false or ray, got 2"),
        ("env.ray.scheduling=PACK", "env.ray.scheduling must be one of SPREAD, DEFAULT, got 'PACK'"),
        ("env.ray.resources={CPU: 2}", "env.ray.resources names CPU, which Ray counts itself; take env.ray.num_cpus"),
        ("env.ray.resources={render: none}", "env.ray.resources: render must be a number above 0, got 'none'"),
        ("env.ray.address=head", "^env.ray: address is 'head'; expected host:port of the head"),
    ],
)
def test_options_that_do_not_fit_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        make_vector_env(load_config(None, ["env.workers=ray", override]).env)
