"""Environments in processes of this machine: messages through a pipe, observations through shared memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium
import torch
from gymnasium.vector.utils import CloudpickleWrapper

from pcm_rl.envs.horizon import horizon_of
from pcm_rl.envs.messages import Built, Message, Raised, execute, raised
from pcm_rl.envs.shared import SharedObservation, free_memory, new_name, sweep_memory

THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
MakeEnv = Callable[[], gymnasium.Env[Any, Any]]


class Processes:
    """Starts processes.

    Args:
        make_env: Builds the environment; pickled with cloudpickle.
        workers: How many processes there will be.
        context: Start method.
    """

    place_timeout: float | None = None  # each begins to build at once

    def __init__(self, make_env: MakeEnv, workers: int, context: str) -> None:
        self._make_env, self._workers = make_env, workers
        self._context = multiprocessing.get_context(context)
        resource_tracker.ensure_running()  # before any fork: a worker's own tracker would free memory in use
        sweep_memory()

    def launch(self, index: int) -> Process:
        """Starts one and returns at once."""
        return Process(self._context, self._make_env, index, self._workers)

    def ready(self, links: Sequence[Process], seconds: float) -> list[Process]:
        """Those that have a message, as soon as there is one; none after so many seconds."""
        pipes = connection.wait([link.pipe for link in links], seconds)
        return [link for link in links if link.pipe in pipes]

    def no_place(self, index: int) -> Exception:
        """Never asked for."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is left to close once each process has ended."""


class Process:
    """The parent's end of the pipe to one environment in its own process."""

    def __init__(self, context: Any, make_env: MakeEnv, index: int, workers: int) -> None:
        self.pipe, workers_end = context.Pipe()
        self.memory_name = new_name()
        self._memory: SharedObservation | None = None
        self.process = context.Process(
            target=serve,
            args=(workers_end, self.pipe, CloudpickleWrapper(make_env), self.memory_name, workers),
            name=f"pcm_rl-worker-{index}",
            daemon=True,
        )
        with _inherited():
            self.process.start()
        workers_end.close()

    def send(self, ticket: int, method: str, argument: Any) -> None:
        """Sends a command; during a build it waits in the pipe."""
        with contextlib.suppress(OSError):  # the process has died; receive() reports it
            self.pipe.send((ticket, method, argument))

    def receive(self) -> Message:
        """The next message; a closed pipe counts as one."""
        try:
            message: Message = self.pipe.recv()
        except (EOFError, OSError):
            return Raised(0, RuntimeError, self._cause_of_death(), misuse=False)
        if isinstance(message, Built):
            self._memory = SharedObservation(message.observation_space, self.memory_name, create=False)
        return message

    def observation(self) -> Any:
        """A copy of the one that belongs to the newest answer."""
        assert self._memory is not None
        return self._memory.read()

    def dismiss(self, idle: bool) -> None:
        """Asks an idle process to close its environment and end; a busy one is killed."""
        if idle:
            with contextlib.suppress(OSError):
                self.pipe.send(None)
        else:
            self.process.kill()

    def end(self, grace: float) -> None:
        """Kills the process unless it ends within `grace` seconds, and frees what it held. Ending twice is fine."""
        self.process.join(grace)
        self.process.kill()
        self.process.join()
        self.pipe.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        free_memory(self.memory_name)

    def _cause_of_death(self) -> str:
        self.process.join(10.0)  # the pipe closes a moment before the process has ended, on a busy machine seconds
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        hint = ""
        if code and self._memory is None:
            hint = '; a script that starts workers needs `if __name__ == "__main__":`'
        return f"the process ended with exit code {code}{hint}"


def serve(pipe: Connection, parents_end: Connection, make_env: MakeEnv, memory_name: str, workers: int) -> None:
    """Runs a worker: builds its environment, then answers commands until the pipe closes or None arrives."""
    parents_end.close()  # inherited by a fork; while it is open, this process cannot notice the parent's death
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(1)
    try:
        env = make_env()
        memory = SharedObservation(env.observation_space, memory_name, create=True, workers=workers)
    except Exception as error:
        pipe.send(raised(0, error))
        return
    with contextlib.suppress(EOFError, OSError):  # the parent has ended
        pipe.send(Built(env.observation_space, env.action_space, horizon_of(env)))
        while (command := pipe.recv()) is not None:
            pipe.send_bytes(_answer(env, memory, *command))
    env.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # torch's regular shutdown takes seconds


def _answer(env: gymnasium.Env[Any, Any], memory: SharedObservation, ticket: int, method: str, argument: Any) -> Any:
    """Executes a command and pickles the answer: an info that cannot be pickled is an error like any other."""
    try:
        observation, done = execute(env, ticket, method, argument)
        memory.write(observation)
        return ForkingPickler.dumps(done)
    except Exception as error:
        return ForkingPickler.dumps(raised(ticket, error))


@contextlib.contextmanager
def _inherited() -> Iterator[None]:
    """Settings that a worker inherits at its start: one thread per library, and Ctrl-C blocked."""
    previous = {name: os.environ.get(name) for name in THREAD_COUNTS}
    os.environ.update(dict.fromkeys(THREAD_COUNTS, "1"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
