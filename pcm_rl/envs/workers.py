"""Persistent simulator processes: asynchronous, or synchronous as a Gymnasium vector environment.

Why not Gymnasium's `AsyncVectorEnv`: it waits for the slowest at every chunk, builds one more simulator in the parent
to read its spaces, and one dead process ends the run.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from numpy.typing import NDArray

from pcm_rl.envs.actor import Actors
from pcm_rl.envs.cluster import ClusterError, RayCluster
from pcm_rl.envs.messages import Built, Done, Placed, Raised
from pcm_rl.envs.options import entry_options
from pcm_rl.envs.process import Processes
from pcm_rl.envs.record import Record
from pcm_rl.envs.worker import Host, Worker

MAX_BUILDS = 3  # failures in a row to build an environment again, before the run stops
_CLOSE_GRACE = 2.0  # seconds for idle environments to close by themselves


class Answer(NamedTuple):
    """What one environment answered; after a reset with reward 0 and both flags False.

    Attributes:
        worker: Index of the worker.
        observation: Of that environment alone, a copy.
        reward: Sum over the chunk.
        terminated: Whether the episode has ended by its own rules.
        truncated: Whether it was cut off.
        info: The environment's info.
    """

    worker: int
    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A worker died, failed or hung in an episode. The episode is lost; a new process is being built.

    Attributes:
        worker: Index of the worker.
        reason: One line.
        error: What the environment raised, with the worker's traceback as its cause; None where it raised nothing.
    """

    worker: int
    reason: str
    error: Exception | None = field(default=None, compare=False)


class WorkerVectorEnv(VectorEnv[Any, NDArray[np.floating], NDArray[Any]]):
    """E processes with one chunked environment each, built once and reset as often as needed.

    **Asynchronous**: :meth:`start` an episode in any worker that is :attr:`free`, :meth:`send` chunks to it, and
    :meth:`wait` for the first answers::

        while playing:
            for worker in env.free:
                env.start(worker, {"init_state": next(states)})
            for result in env.wait():  # an Answer or a Failure
                ...
                env.send(result.worker, chunk)

    **Synchronous**: :meth:`reset` and :meth:`step`, as in every vector environment with autoreset disabled. Options
    that are arrays, lists or tuples of E entries are split between the environments; `options["reset_mask"]` selects
    which are reset. An environment that has ended idles: it keeps its flags, pays 0 and reports a chunk of pads until
    its reset.

    Linux and macOS. Observations come through shared memory, from other machines through Ray. An error about arguments
    (`ValueError`, `TypeError`, `LookupError`, Gymnasium's errors) is raised here, and the worker stays. A worker that
    dies, raises another error, or does not answer in time is killed and built again while the others continue;
    :attr:`restarts` counts that.

    Args:
        make_env: Builds one environment whose action is a chunk `[L, D]` and whose step info has `"action_is_pad"`
            `[L]` and `"success"`. It is pickled with cloudpickle: lambdas and closures are fine, objects that hold a
            simulator are not. Nothing is built in this process.
        num_envs: E, at least 1.
        context: Start method. `"spawn"`: a script needs `if __name__ == "__main__":`, and every worker imports torch
            (seconds). `"fork"` starts at once, but neither CUDA nor EGL, used before in this process, survives it.
        timeout: Seconds that one reset or chunk may take.
        build_timeout: Seconds that building an environment may take.
        cluster: Run them as actors of a Ray cluster, and `context` means nothing; None for processes of this machine.

    Attributes:
        horizon: Steps after which an episode is cut off; None where the environment does not tell.
        restarts: Workers started again so far.
        played: For each worker, the tasks that it has simulators of, the last one played last; for the caller, who
            assigns tasks.
        keep_tasks: Simulators that each environment keeps of several tasks; None for all. For the caller too.

    Raises:
        ValueError: An argument does not fit, the actions are not chunks, or the spaces of two workers differ.
        TimeoutError: An environment was not built in time.
        NoRoom: There is too little shared memory for the observations.
        ImportError: Ray is not installed.
        ClusterError: The cluster cannot be reached or has no place for an environment.
        Exception: What `make_env` raised in a worker.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env[Any, Any]],
        num_envs: int,
        *,
        context: str = "spawn",
        timeout: float = 120.0,
        build_timeout: float = 300.0,
        cluster: RayCluster | None = None,
    ) -> None:
        self._error: Exception | None = None
        self._workers: list[Worker] = []
        hosts: list[Host[Any]] = []
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, hosts)  # also at the interpreter's exit
        if num_envs < 1 or timeout <= 0 or build_timeout <= 0:
            raise ValueError(
                f"num_envs is {num_envs}, timeout {timeout}, build_timeout {build_timeout}; expected at least 1 and "
                "more than 0 seconds"
            )
        self._host: Host[Any] = (
            Actors(make_env, cluster) if cluster is not None else Processes(make_env, num_envs, context)
        )
        hosts.append(self._host)
        patience = {"timeout": timeout, "build_timeout": build_timeout}
        self.num_envs, self.restarts = num_envs, 0
        self.played: list[list[int]] = [[] for _ in range(num_envs)]
        self.keep_tasks: int | None = None
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        try:
            for index in range(num_envs):
                self._workers.append(Worker(index, self._host, **patience))
            for worker in self._workers:
                self._adopt(worker.first_build(), worker.index)
        except BaseException:
            self.close()
            raise
        self._nothing = Record(self.single_observation_space).read()
        self._last = [self._never_started(index) for index in range(num_envs)]

    # -- asynchronous --------------------------------------------------------------------------------------------------

    @property
    def free(self) -> list[int]:
        """Indices of the workers that have an environment and nothing to do."""
        return [worker.index for worker in self._workers if worker.built and worker.pending is None]

    def start(self, worker: int, options: dict[str, Any] | None = None, *, seed: int | None = None) -> None:
        """Resets the environment of one worker; its answer comes from :meth:`wait`.

        The answer of a busy worker to its earlier command is dropped; a worker that is being built starts afterwards.

        Args:
            worker: Index.
            options: Of this environment, passed on as they are.
            seed: Passed on.
        """
        self._open(worker).post("reset", {"seed": seed, "options": options})

    def send(self, worker: int, chunk: NDArray[np.floating]) -> None:
        """Has one worker execute a chunk `[L, D]`; its answer comes from :meth:`wait`."""
        self._open(worker).post("step", np.asarray(chunk))

    def cancel(self) -> None:
        """Drops episodes and the answers to pending commands, which an interrupted caller has left."""
        self._error = None
        for worker in self._workers:
            worker.forget()
            worker.playing = False

    def lose(self, worker: int, reason: str) -> Failure:
        """Builds a worker again whose answer cannot be used; the :class:`Failure` of its episode.

        Args:
            worker: Index.
            reason: One line.
        """
        self._restart(self._open(worker))
        return Failure(worker, reason)

    def wait(self, *, complaints: bool = True, seconds: float | None = None) -> list[Answer | Failure]:
        """Blocks until there is an answer, a failure, or a worker whose state has changed.

        A worker that dies between two chunks of an episode is a failure as well.

        Args:
            complaints: Raise here what an environment says of its arguments, and leave its worker as it is. False makes
                it a failure like any other: also a simulator that breaks may raise a `ValueError`.
            seconds: Return after them at the latest; None waits for as long as it takes.

        Returns:
            Every answer and failure there is by now. The list is empty after other changes, such as a worker that is
            :attr:`free` again after a restart, and after ``seconds``.

        Raises:
            RuntimeError: No command is pending, or an environment could not be built again.
            Exception: An error of a worker about its arguments, with the worker's index.
        """
        deadlines = [worker.deadline for worker in self._workers if worker.deadline is not None]
        if self._error is None and not deadlines:
            raise RuntimeError("nothing is under way: start() an episode or send() a chunk before wait()")
        patience = 0.0 if self._error else max(0.0, min(deadlines) - time.monotonic())
        if seconds is not None:
            patience = min(patience, seconds)
        ready = self._host.ready([worker.link for worker in self._workers], patience)
        results: list[Answer | Failure | None] = []
        for worker in self._workers:
            try:
                if worker.link in ready:
                    results.append(self._hear(worker, complaints))
                elif worker.deadline is not None and worker.deadline <= time.monotonic():
                    results.append(self._lose(worker, worker.lateness()))
            except Exception as error:  # raised below, or by the next call, so that no answer of another worker is lost
                self._error = self._error or error
        known = [result for result in results if result is not None]
        if self._error is not None and not known:
            first_error, self._error = self._error, None
            raise first_error
        return known

    # -- synchronous ---------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in every environment, or in those of `options["reset_mask"]` `[E]` bool.

        Args:
            seed: Of the first environment, counted upwards for the next ones; or one for each.
            options: Each an array, list or tuple `[E]`, or one value for all; `"reset_mask"` is taken out of the dict.

        Returns:
            Observations `[E, ...]`, unchanged where nothing was reset, and batched infos of the environments that were.

        Raises:
            ValueError: Seeds or an option do not have E entries, the mask selects none, or an environment refuses its
                options.
            RuntimeError: A worker failed.
        """
        mask = np.ones(self.num_envs, dtype=bool)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options.pop("reset_mask"))
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(f"reset_mask is {mask}; expected {self.num_envs} booleans, at least one of them True")
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"got {len(seed)} seeds, expected {self.num_envs}: one an environment")
        options_of_env = [entry_options(options, index, self.num_envs) for index in range(self.num_envs)]
        self.cancel()
        indices = np.flatnonzero(mask).tolist()
        for index in indices:
            self.start(index, options_of_env[index], seed=seed[index])
        infos = self._batched_infos(self._gather(indices))
        return self._observations(), infos

    def step(
        self, actions: NDArray[np.floating]
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Executes a chunk in every environment that has not ended.

        Args:
            actions: `[E, L, D]`.

        Returns:
            Observations `[E, ...]`, rewards `[E]` float64, terminations and truncations `[E]` bool, and infos with
            `"action_is_pad"` `[E, L]` bool and `"success"` `[E]` bool.

        Raises:
            ValueError: The actions have another shape, or an environment refuses its chunk.
            RuntimeError: A worker failed.
        """
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"the actions have shape {actions.shape}, expected {self.action_space.shape}")
        running = [a.worker for a in self._last if not (a.terminated or a.truncated)]
        answers = [self._idle(last) for last in self._last]
        for index in running:
            self.send(index, actions[index])
        for answer in self._gather(running):
            answers[answer.worker] = answer
        rewards = np.array([answer.reward for answer in answers], dtype=np.float64)
        terminated = np.array([answer.terminated for answer in answers])
        truncated = np.array([answer.truncated for answer in answers])
        return self._observations(), rewards, terminated, truncated, self._batched_infos(answers)

    def close_extras(self) -> None:
        """Ends the processes: idle environments close themselves, busy ones are killed."""
        self._finalizer()

    # -- internals -----------------------------------------------------------------------------------------------------

    def _open(self, index: int) -> Worker:
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError("the workers are closed; make a new vector environment")
        return self._workers[index]

    def _adopt(self, built: Built, index: int) -> None:
        if index:
            if built[:2] != (self.single_observation_space, self.single_action_space):
                raise ValueError(f"worker {index} has other spaces than worker 0: {built[:2]}")
            return
        self.horizon = built.horizon
        chunks = built.action_space
        if not isinstance(chunks, spaces.Box) or len(chunks.shape) != 2:
            raise ValueError(f"workers need chunks, an action space Box [L, D], got {chunks}: wrap it in ChunkedEnv")
        self._chunks = self.single_action_space = chunks
        self.single_observation_space = built.observation_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(chunks, self.num_envs)

    def _hear(self, worker: Worker, complaints: bool) -> Answer | Failure | None:
        message = worker.receive()
        if isinstance(message, Raised):
            complaint = message.misuse and worker.built
            if not complaint or (not complaints and message.ticket == worker.pending):
                return self._lose(worker, message.reason, message.exception() if message.trace else None)
        if isinstance(message, Placed | Built) or message.ticket != worker.pending:
            return None
        worker.forget()
        if isinstance(message, Raised):
            raise message.exception(f"worker {worker.index}: ")
        assert isinstance(message, Done)
        answer = Answer(worker.index, worker.link.observation(), *message[1:])
        self._last[worker.index] = answer
        worker.playing = not (answer.terminated or answer.truncated)
        return answer

    def _lose(self, worker: Worker, reason: str, error: Exception | None = None) -> Failure | None:
        """Starts the process again; the failure of its episode or command, None if there was none."""
        worker.failed_builds += not worker.built
        if worker.failed_builds >= MAX_BUILDS:
            kind = RuntimeError if worker.placed else ClusterError
            raise kind(f"worker {worker.index} could not be built again, {MAX_BUILDS} times in a row: {reason}")
        failure = Failure(worker.index, reason, error) if worker.pending is not None or worker.playing else None
        self._restart(worker)
        return failure

    def _restart(self, worker: Worker) -> None:
        worker.end()
        worker.launch()
        self.restarts += 1
        self.played[worker.index].clear()
        self._last[worker.index] = self._never_started(worker.index)

    def _gather(self, indices: list[int]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        while len(answers) < len(indices):
            for result in self.wait():
                if isinstance(result, Failure):
                    raise RuntimeError(
                        f"worker {result.worker} failed: {result.reason}; it is being built anew, reset it to go on"
                    )
                answers[result.worker] = result
        return [answers[index] for index in indices]

    def _idle(self, last: Answer) -> Answer:
        pads = np.ones(self._chunks.shape[0], dtype=bool)
        info = {"action_is_pad": pads, "success": last.info.get("success", False)}
        return last._replace(reward=0.0, info=info)

    def _never_started(self, index: int) -> Answer:
        return Answer(index, self._nothing, 0.0, False, False, {})

    def _observations(self) -> Any:
        out: Any = create_empty_array(self.single_observation_space, self.num_envs)
        return concatenate(self.single_observation_space, [last.observation for last in self._last], out)

    def _batched_infos(self, answers: Iterable[Answer]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for answer in answers:
            infos = self._add_info(infos, answer.info, answer.worker)
        return infos


def _shut_down(workers: list[Worker], hosts: list[Host[Any]]) -> None:
    for worker in workers:
        worker.dismiss()
    until = time.monotonic() + _CLOSE_GRACE
    for worker in workers:
        worker.end(max(0.0, until - time.monotonic()))
    for host in hosts:
        host.close()
