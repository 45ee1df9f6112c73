"""Environments as Ray actors, on any machine of a cluster.

Messages are pickled, and travel between members of the cluster only. An observation travels as the bytes of its record.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pickle
import platform
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from pcm_rl.envs.cluster import CONNECTION, ClusterError, RayCluster, import_ray
from pcm_rl.envs.horizon import horizon_of
from pcm_rl.envs.messages import Built, Done, Message, Placed, Raised, execute, raised
from pcm_rl.envs.process import THREAD_COUNTS
from pcm_rl.envs.record import Record

_SAME = ("pcm_rl", "gymnasium", "numpy", "mujoco", "robosuite", "metaworld")  # or else rows depend on the machine
_INHERITED = ("MUJOCO_GL", "PYOPENGL_PLATFORM")  # another renderer draws other pixels
_Sent = tuple[bytes, NDArray[np.uint8] | None]  # a pickled message, and a record


class Simulator:
    """One environment; the class of the actor, whose methods Ray calls one after the other."""

    def place(self) -> tuple[str, dict[str, str]]:
        """The machine, and versions of packages on it."""
        return platform.node(), installed()

    def build(self, make_env: bytes) -> _Sent:
        """Builds the environment."""
        torch.set_num_threads(1)
        try:
            self._env: gymnasium.Env[Any, Any] = pickle.loads(make_env)()
            self._record = Record(self._env.observation_space)
            built = Built(self._env.observation_space, self._env.action_space, horizon_of(self._env))
            return pickle.dumps(built), None
        except Exception as error:
            return pickle.dumps(raised(0, error)), None

    def answer(self, ticket: int, method: str, argument: Any) -> _Sent:
        """Executes a command; an info that cannot be pickled is an error like any other."""
        try:
            observation, done = execute(self._env, ticket, method, argument)
            self._record.write(observation)
            return pickle.dumps(done), self._record.bytes()
        except Exception as error:
            return pickle.dumps(raised(ticket, error)), None

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


class Actors:
    """Starts actors.

    Args:
        make_env: Builds the environment; pickled with cloudpickle.
        cluster: Where, and what each asks for.

    Raises:
        ImportError: Ray is not installed.
        ClusterError: The cluster cannot be reached.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env[Any, Any]], cluster: RayCluster) -> None:
        self._make_env, self._cluster = cloudpickle.dumps(make_env), cluster
        self.place_timeout: float | None = None
        self._versions = installed()
        self.ray = import_ray()
        environment = dict.fromkeys(THREAD_COUNTS, "1")
        environment |= {name: os.environ[name] for name in _INHERITED if name in os.environ}
        options = {"max_restarts": 0, "max_task_retries": 0, "runtime_env": {"env_vars": environment}}
        CONNECTION.open(cluster)
        if CONNECTION.alone:  # there is nobody to share with
            options["num_cpus"] = 0
        else:
            options, self.place_timeout = options | cluster.wants(), cluster.timeout
        self._class = self.ray.remote(Simulator).options(**options)

    def launch(self, index: int) -> Actor:
        """Starts one and returns at once."""
        return Actor(self, self._class.remote(), self._make_env)

    def ready(self, links: Sequence[Actor], seconds: float) -> list[Actor]:
        """Those that have a message, as soon as there is one; none after so many seconds."""
        waiting = {link.expected[0]: link for link in links if link.expected}
        if not waiting:
            time.sleep(seconds)
            return []
        ready, rest = self.ray.wait(list(waiting), timeout=seconds)
        if ready and rest:
            ready += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [waiting[answer] for answer in ready]

    def check(self, machine: str, versions: dict[str, str]) -> None:
        """Refuses a machine with other versions than this one or an earlier one, as far as both have a package.

        Raises:
            ClusterError: A version differs.
        """
        for name, version in versions.items():
            if (expected := self._versions.setdefault(name, version)) != version:
                raise ClusterError(
                    f"{machine} has {name} {version}, and this machine or another one of the cluster {expected}: rows "
                    "would depend on where they are played; install the same version on all"
                )

    def no_place(self, index: int) -> ClusterError:
        """What was asked for, and what the cluster has."""
        wants = {"CPU": self._cluster.num_cpus, **self._cluster.resources}
        free = {name: self._free().get(name, 0.0) for name in wants}
        return ClusterError(
            f"worker {index}: the Ray cluster has given it no place within {self.place_timeout:g} s. Each environment "
            f"asks for {_listed(wants)}, and in the whole cluster {_listed(free)} is free: add machines, or lower "
            "env.num_envs or what env.ray asks for"
        )

    def _free(self) -> dict[str, float]:
        return dict(self.ray.available_resources()) if self.ray.is_initialized() else {}

    def close(self) -> None:
        """Ends the connection, if nobody else needs it."""
        CONNECTION.close()


class Actor:
    """The near end of the connection to one actor.

    Attributes:
        expected: What will be answered, the oldest first.
    """

    def __init__(self, host: Actors, handle: Any, make_env: bytes) -> None:
        self._host, self._handle, self._machine = host, handle, ""
        self._space: Any = None
        self._record: Any = None
        self._closing: list[Any] = []
        self.expected: deque[Any] = deque([handle.place.remote(), handle.build.remote(make_env)])

    def send(self, ticket: int, method: str, argument: Any) -> None:
        """Sends a command, which waits for its turn."""
        self.expected.append(self._handle.answer.remote(ticket, method, argument))

    def receive(self) -> Message:
        """The next message; a death counts as one."""
        ray = self._host.ray
        try:
            answer = ray.get(self.expected[0])
        except ray.exceptions.RayError as error:
            self.expected.popleft()
            kind = RuntimeError if self._machine else ClusterError
            return Raised(0, kind, self._lost(error), misuse=False)
        self.expected.popleft()
        if not self._machine:
            self._machine, versions = answer
            self._host.check(self._machine, versions)
            return Placed(self._machine)
        message: Message = pickle.loads(answer[0])
        if isinstance(message, Built):
            self._space = message.observation_space
        if isinstance(message, Done):
            self._record = answer[1]
        return message

    def observation(self) -> Any:
        """A copy of the one that belongs to the newest answer."""
        return Record(self._space, self._record).read()

    def dismiss(self, idle: bool) -> None:
        """Asks an idle actor to close its environment; a busy one is killed."""
        if idle and self._host.ray.is_initialized():
            self._closing = [self._handle.close.remote()]
        else:
            self._kill()

    def end(self, grace: float) -> None:
        """Kills the actor, an idle one after `grace` seconds at the latest. Ending twice is fine."""
        if self._closing and self._host.ray.is_initialized():
            self._host.ray.wait(self._closing, timeout=grace)
        self._closing = []
        self._kill()
        self.expected.clear()

    def _kill(self) -> None:
        if self._host.ray.is_initialized():  # else it has ended with the connection
            with contextlib.suppress(self._host.ray.exceptions.RayError, ValueError):
                self._host.ray.kill(self._handle)

    def _lost(self, error: Exception) -> str:
        """One line; Ray's own text says the same in ten."""
        if isinstance(error, self._host.ray.exceptions.RayActorError) and self._machine:
            return f"its Ray actor on {self._machine} has died (killed, out of memory, or the machine is gone?)"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"its Ray actor failed: {lines[-1]}"


def installed() -> dict[str, str]:
    """Versions of the packages that rows depend on, as far as they are installed here."""
    versions = {}
    for name in _SAME:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _listed(amounts: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in amounts.items())
