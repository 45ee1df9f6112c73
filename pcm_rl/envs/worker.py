"""One environment in its own process, and the parent's end of the pipe to it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import CloudpickleWrapper

from pcm_rl.envs.horizon import horizon_of
from pcm_rl.envs.shared import SharedObservation, free_memory, new_name

_THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_MISUSE = (ValueError, TypeError, LookupError, gymnasium.error.Error)


class Built(NamedTuple):
    """The environment is there."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    horizon: int | None


class Done(NamedTuple):
    """A command was executed, and the observation is in the shared memory."""

    ticket: int
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Raised(NamedTuple):
    """A command, or building, ended in an exception."""

    ticket: int
    kind: type[Exception]
    text: str
    misuse: bool  # the caller's fault, and the environment can still be used
    trace: str = ""

    @property
    def reason(self) -> str:
        """One line."""
        return f"{self.kind.__name__}: {self.text}" if self.trace else self.text

    def exception(self, prefix: str = "") -> Exception:
        """The exception again, with the worker's traceback as its cause."""
        error = self.kind(prefix + self.text)
        if self.trace:
            error.__cause__ = RuntimeError(f"in the worker:\n{self.trace}")
        return error


def serve(
    pipe: Connection,
    parents_end: Connection,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    memory_name: str,
    workers: int,
) -> None:
    """Runs a worker: builds its environment, then answers commands until the pipe closes or None arrives."""
    parents_end.close()  # inherited by a fork; while it is open, this process cannot notice the parent's death
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(1)
    try:
        env = make_env()
        memory = SharedObservation(env.observation_space, memory_name, create=True, workers=workers)
    except Exception as error:
        pipe.send(_raised(0, error))
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
        if method == "reset":
            (observation, info), reward, terminated, truncated = env.reset(**argument), 0.0, False, False
        else:
            observation, reward, terminated, truncated, info = env.step(argument)  # type: ignore[assignment]
        memory.write(observation)
        return ForkingPickler.dumps(Done(ticket, float(reward), bool(terminated), bool(truncated), info))
    except Exception as error:
        return ForkingPickler.dumps(_raised(ticket, error))


def _raised(ticket: int, error: Exception) -> Raised:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # a KeyError quotes itself
    # Linear algebra of a simulation that has diverged; NumPy makes it a ValueError.
    misuse = isinstance(error, _MISUSE) and not isinstance(error, np.linalg.LinAlgError)
    return Raised(ticket, portable_type(error), text, misuse, traceback.format_exc())


def portable_type(error: Exception) -> type[Exception]:
    """The nearest class of `error` that another process can import, and that can be made from a message."""
    for kind in type(error).__mro__:
        if kind.__module__ == "__mp_main__":  # the parent's script, under a name that exists in workers only
            continue
        with contextlib.suppress(Exception):
            pickle.dumps(kind)
            kind("")
            return kind
    return RuntimeError


class Worker:
    """The parent's side of a worker: starts it, sends commands, receives answers, ends it.

    Commands carry a ticket. Only the answer to the latest command counts; answers to earlier ones are stale.

    Args:
        index: Position among the workers.
        make_env: Builds the environment; pickled with cloudpickle.
        context: Start method of the process.
        timeout: Seconds for the answer to a command.
        build_timeout: Seconds for the environment to be built.
        workers: How many workers there are.
    """

    def __init__(
        self,
        index: int,
        make_env: Callable[[], gymnasium.Env[Any, Any]],
        context: str,
        *,
        timeout: float,
        build_timeout: float,
        workers: int = 1,
    ) -> None:
        self.index, self._make_env, self._workers = index, make_env, workers
        self._context = multiprocessing.get_context(context)
        self._timeout, self._build_timeout = timeout, build_timeout
        self._ticket = 0
        self.failed_builds = 0
        self.playing = False  # an episode is under way
        self.memory: SharedObservation | None = None
        self.launch()

    def launch(self) -> None:
        """Starts the process and returns at once; :class:`Built` will come through the pipe."""
        self.pipe, workers_end = self._context.Pipe()
        self._memory_name = new_name()
        self.process = self._context.Process(  # type: ignore[attr-defined]
            target=serve,
            args=(workers_end, self.pipe, CloudpickleWrapper(self._make_env), self._memory_name, self._workers),
            name=f"pcm_rl-worker-{self.index}",
            daemon=True,
        )
        with _inherited():
            self.process.start()
        workers_end.close()
        self.built = self.playing = False
        self.pending: int | None = None  # ticket of the command whose answer is awaited
        self._building_until: float | None = time.monotonic() + self._build_timeout
        self._answer_until: float | None = None

    @property
    def deadline(self) -> float | None:
        """Time on the monotonic clock; None while no answer is expected."""
        return self._building_until or self._answer_until

    @property
    def lateness(self) -> str:
        """The error text after the deadline."""
        if not self.built:
            return f"the environment was not built within {self._build_timeout:g} s"
        return f"no answer within {self._timeout:g} s"

    def first_build(self) -> Built:
        """Waits until the environment is built for the first time; a failure is an error, as it would happen again.

        Raises:
            TimeoutError: It was not built in time.
            Exception: What building it raised.
        """
        if not self.pipe.poll(max(0.0, (self.deadline or 0.0) - time.monotonic())):
            raise TimeoutError(f"worker {self.index}: {self.lateness}")
        message = self.receive()
        if isinstance(message, Raised):
            raise message.exception("" if message.trace else f"worker {self.index}, while it was being built: ")
        assert isinstance(message, Built)
        return message

    def post(self, method: str, argument: Any) -> None:
        """Sends a command; answers to earlier ones become stale. During a build the command waits in the pipe."""
        self._ticket += 1
        self.pending, self._answer_until = self._ticket, time.monotonic() + self._timeout
        with contextlib.suppress(OSError):  # the process has died; receive() reports it
            self.pipe.send((self._ticket, method, argument))

    def forget(self) -> None:
        """Makes the answer to the pending command, if there is one, stale."""
        self.pending = self._answer_until = None

    def receive(self) -> Built | Done | Raised:
        """The next message; a closed pipe counts as one. Records when the environment is built."""
        try:
            message: Built | Done | Raised = self.pipe.recv()
        except (EOFError, OSError):
            return Raised(0, RuntimeError, self._cause_of_death(), misuse=False)
        if isinstance(message, Built):
            self.memory = SharedObservation(message.observation_space, self._memory_name, create=False)
            self.built, self._building_until, self.failed_builds = True, None, 0
            if self.pending is not None:
                self._answer_until = time.monotonic() + self._timeout
        return message

    def dismiss(self) -> None:
        """Asks an idle worker to close its environment and end; a busy one is killed."""
        if self.built and self.pending is None:
            with contextlib.suppress(OSError):
                self.pipe.send(None)
        else:
            self.process.kill()

    def end(self, grace: float = 0.0) -> None:
        """Kills the process unless it ends within `grace` seconds, and frees what it held. Ending twice is fine."""
        self.process.join(grace)
        self.process.kill()
        self.process.join()
        self.pipe.close()
        if self.memory is not None:
            self.memory.close()
            self.memory = None
        free_memory(self._memory_name)

    def _cause_of_death(self) -> str:
        self.process.join(10.0)  # the pipe closes a moment before the process has ended, on a busy machine seconds
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        hint = '; a script that starts workers needs `if __name__ == "__main__":`' if code and not self.built else ""
        return f"the process ended with exit code {code}{hint}"


@contextlib.contextmanager
def _inherited() -> Iterator[None]:
    """Settings that a worker inherits at its start: one thread per library, and Ctrl-C blocked."""
    previous = {name: os.environ.get(name) for name in _THREAD_COUNTS}
    os.environ.update(dict.fromkeys(_THREAD_COUNTS, "1"))
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
