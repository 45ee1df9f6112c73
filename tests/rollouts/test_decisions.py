"""Decisions of waiting workers: when they are made, and that rows depend neither on timing nor on company."""

import contextlib
import os
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from gymnasium import spaces

from pcm_rl.config import ConfigError, RolloutConfig
from pcm_rl.envs import chunked_vector_env
from pcm_rl.episodes import FEATURES, INSTRUCTION
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.policies.openvla import add_lora
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.decisions import AT_ONCE, Decisions, Queue
from pcm_rl.rollouts.evaluate import evaluate
from pcm_rl.rollouts.rows import decide

LENGTH, SIZE = 2, 56
TEXTS = ("open", "put the bowl on the plate", "open the top drawer of the cabinet and put the bowl into it")


def test_when_it_decides():
    rule = Decisions(4, 0.5)
    assert rule.patience(waiting=4, waited=0.0, coming=9) == 0.0
    assert rule.patience(waiting=5, waited=0.0, coming=9) == 0.0
    assert rule.patience(waiting=3, waited=0.0, coming=1) == 0.5
    assert rule.patience(waiting=3, waited=0.125, coming=1) == 0.375
    assert rule.patience(waiting=3, waited=0.75, coming=1) == 0.0
    assert rule.patience(waiting=1, waited=0.0, coming=0) == 0.0
    assert AT_ONCE.patience(waiting=1, waited=0.0, coming=9) == 0.0
    assert Decisions.of(RolloutConfig()).rows is None
    assert Decisions.of(RolloutConfig(decisions=8, decision_wait=0.125)) == Decisions(8, 0.125)
    for rows, seconds in ((0, 0.0), (2, -1.0), (2, float("nan"))):
        with pytest.raises(ValueError, match="at least one row and at least 0 seconds"):
            Decisions(rows, seconds)
    for wrong in ({"decisions": 0}, {"decision_wait": -0.1}):
        with pytest.raises(ConfigError, match=rf"rollouts\.{next(iter(wrong))} must be at least"):
            RolloutConfig(**wrong)


def test_the_queue_gives_the_first_who_came():
    queue = Queue(Decisions(2, 1.0))
    assert queue.patience(0.0, 5) is None and queue.take(0.0, 5) == []
    for number in range(3):
        queue.add(number, f"worker {number}", float(number))
    assert queue.patience(2.0, 5) == 0.0 and len(queue) == 3
    assert queue.take(2.0, 5) == ["worker 0", "worker 1"]
    assert queue.patience(2.5, 5) == 0.5 and queue.take(2.5, 5) == []
    assert queue.patience(2.5, 0) == 0.0  # nobody else can come
    queue.drop(2)
    queue.drop(7)
    assert queue.take(9.0, 5) == [] and not queue
    everyone = Queue(AT_ONCE)
    for number in range(3):
        everyone.add(number, number, 0.0)
    assert everyone.take(0.0, 5) == [0, 1, 2]


def test_only_rows_of_one_shape_share_a_decision():
    queue = Queue(Decisions(2, 1.0))
    for number, shape in enumerate((40, 80, 80, 40)):
        queue.add(number, number, float(number), shape)
    assert [queue.take(3.0, 1), queue.take(3.0, 1), queue.take(3.0, 1)] == [[0, 3], [1, 2], []]
    queue.add(4, 4, 4.0, 40)
    queue.add(5, 5, 4.5, 80)
    assert queue.take(4.5, 1) == []
    assert queue.take(5.25, 1) == [4] and queue.patience(5.25, 1) == 0.25
    assert queue.take(5.25, 0) == [5]


class Robot(gym.Env):
    """Pixels and an instruction; the images depend on all actions so far, and a step takes some time.

    With a ``folder`` the episode from state 1 kills the process that plays state 0, once, at its reset.
    """

    def __init__(self, delay=0.0, folder=None):
        self.delay, self.folder = delay, folder
        self.action_space = spaces.Box(-1, 1, (7,), np.float32)
        self.observation_space = spaces.Dict({"image": spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)})

    def reset(self, *, seed=None, options=None):
        self.init_state, self.steps = options["init_state"], 0
        self.random = np.random.default_rng(self.init_state)
        if self.folder is not None and self.init_state < 2:
            self._murder()
        return self._observe(), {"instruction": TEXTS[self.init_state % len(TEXTS)]}

    def step(self, action):
        time.sleep(self.delay * np.random.default_rng().random())  # seeded by nothing
        self.steps += 1
        self.random = np.random.default_rng([self.init_state, *np.round(action * 1e6).astype(int) % 2**20])
        return self._observe(), 0.0, False, self.steps >= 3 + self.init_state % 3, {"success": False}

    def _observe(self):
        return {"image": self.random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)}

    def _murder(self):
        pid, done = Path(self.folder, "pid"), Path(self.folder, "done")
        if self.init_state == 0:
            pid.write_text(str(os.getpid()))
        elif not done.exists():
            while not pid.exists() or not pid.read_text():
                time.sleep(0.01)
            time.sleep(0.2)  # it waits for a decision by now
            os.kill(int(pid.read_text()), signal.SIGKILL)
            done.touch()


@contextlib.contextmanager
def workers(number, **kwargs):
    env = chunked_vector_env(lambda: Robot(**kwargs), number, chunk_length=LENGTH, context="fork", timeout=60.0)
    try:
        yield env
    finally:
        env.close()


def same(a, b):
    assert set(a.keys(True, True)) == set(b.keys(True, True)) and len(a) == len(b)
    for key in a.keys(True, True):
        assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key], key
    return True


class Counted:
    """A policy, and how many rows each of its calls had, with the lengths of the prompts."""

    def __init__(self, policy):
        self.policy, self.calls = policy, []
        batch = policy.prompter.batch
        policy.prompter.batch = lambda *args, **more: self._count(batch(*args, **more))

    def _count(self, prompts):
        self.calls.append(tuple(prompts[0].shape))
        return prompts


@pytest.fixture(params=[(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def policy(request, make_openvla):
    dtype, merge = request.param
    policy = make_openvla(chunk_length=LENGTH, dtype=dtype, merge=merge)
    add_lora(policy.model, rank=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=generator)
    policy.record_critic_features(True)
    return policy


STATES = torch.tensor([0, 1, 2, 3, 4, 0])


def collect(env, policy, decisions):
    torch.manual_seed(5)
    return collect_episodes(env, policy, STATES, torch.arange(6), decisions=decisions)


def test_rows_are_those_of_any_number_of_workers_bit_for_bit(policy):
    counted, found = Counted(policy), []
    shapes = {policy.padded_length(text) for text in TEXTS}
    assert len(shapes) == 2
    for number, wait in ((1, 0.0), (2, 0.002), (3, 0.05), (5, 0.005)):
        with workers(number, delay=0.004) as env:
            found.append(collect(env, policy, Decisions(3, wait)))
    assert {rows for rows, _ in counted.calls} == {3} and {length for _, length in counted.calls} == shapes
    assert found[0][FEATURES].shape[1] > 1
    assert all(same(found[0], rows) for rows in found[1:])


def test_evaluations_do_not_depend_on_the_number_of_workers_either(make_openvla):
    policy, found = make_openvla(chunk_length=LENGTH), []
    for number in (1, 4):
        with workers(number) as env:
            found.append(evaluate(env, policy, STATES, 6, seed=3, decisions=Decisions(3, 0.01)).rows)
    assert same(*found)


def test_a_row_depends_neither_on_its_place_nor_on_the_others(policy):
    with workers(1) as env:
        rows = collect(env, policy, Decisions(1))
    rows = rows[[i for i, text in enumerate(rows[INSTRUCTION]) if text != TEXTS[-1]]][:4].select(*policy.in_keys)
    seeds = [3, 4, 5, 6]

    @torch.no_grad()
    def acted(order):
        with policy.seeded([seeds[i] for i in order]), policy.padded():
            return policy(rows[torch.tensor(order)])[torch.tensor(order).argsort()].exclude(INSTRUCTION)

    expected = acted([0, 1, 2, 3])
    assert same(expected, acted([2, 0, 3, 1])) and same(expected, acted([3, 2, 1, 0]))
    with torch.no_grad(), policy.seeded([seeds[i] for i in (1, 1, 2, 1)]), policy.padded():
        assert same(policy(rows[[1, 1, 2, 1]])[1:3].exclude(INSTRUCTION), expected[1:3])


def test_a_full_batch_is_what_more_workers_than_rows_give(make_openvla):
    policy = make_openvla(chunk_length=LENGTH)
    counted = Counted(policy)
    with workers(4) as env:
        collect_episodes(env, policy, torch.zeros(8).long(), torch.arange(8), decisions=Decisions(4, 60.0))
    assert len(counted.calls) == 4  # 8 episodes of 2 chunks, by 4: nobody is waited for in vain


def test_a_worker_that_dies_while_it_waits_changes_nothing(make_openvla, tmp_path):
    policy, found = make_openvla(chunk_length=LENGTH), []
    for folder in (None, str(tmp_path)):
        with workers(2, folder=folder) as env:
            if folder is None:
                found.append(collect(env, policy, Decisions(2, 60.0)))
                continue
            with pytest.warns(RuntimeWarning, match="initial state 0 failed and is played again: killed by SIGKILL"):
                found.append(collect(env, policy, Decisions(2, 60.0)))
            assert env.restarts == 1 and (tmp_path / "done").exists()
    assert same(*found)


def test_what_cannot_share_decisions_is_refused():
    def toy(**more):
        return chunked_vector_env(lambda: gym.make("pcm_rl/Reach-v0"), 1, chunk_length=4, **more)

    in_step, free = toy(workers=False), toy(context="fork")
    try:
        policy = StateTokenPolicy(free.single_observation_space.shape[0], free.single_action_space.shape[1], 4)
        for env, text in (
            (in_step, r"rollouts\.decisions=4 is for environments that run at their own pace"),
            (free, r"rollouts\.decisions=4 needs a policy that draws each row with a seed of its own"),
        ):
            with pytest.raises(ConfigError, match=text):
                collect_episodes(env, policy, torch.arange(2), torch.arange(2), decisions=Decisions(4))
    finally:
        in_step.close()
        free.close()


def test_only_what_the_policy_writes_comes_back_from_the_device(make_openvla):
    observation = {("observation", "image"): torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)}
    told = {"init_state": torch.zeros(2), "chunk": torch.zeros(2)}
    with fake_cuda() as log:
        policy = make_openvla(chunk_length=LENGTH, device="cuda")
        with policy.seeded([1, 2, 1, 1]), policy.padded():
            log.clear()
            part = decide(policy, observation, ["open", "go"], device="cuda", rows=4, **told)
        a_row = LENGTH * 7  # numbers of tokens, of actions and of log-probs; TorchRL decodes the tokens on the host
        assert log.bytes["d2h"] == 2 * a_row * (8 + 4 + 4) + 4 * a_row * 8
        assert log.bytes["h2d"] >= 4 * 3 * SIZE * SIZE
    assert set(part) == {("observation", "image"), *(("vla_action", key) for key in ("tokens", "chunk", "log_probs"))}
    assert all(value.device.type == "cpu" and len(value) == 2 for value in part.values())
    assert torch.equal(part["observation", "image"], observation["observation", "image"])
