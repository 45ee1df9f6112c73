"""Roll out on asynchronous workers, with rows that do not depend on timing."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor

from pcm_rl.envs.observation import Reader, observation_readers, read_observation
from pcm_rl.envs.workers import Answer, Failure, WorkerVectorEnv
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE
from pcm_rl.policies.family import PadsPrompts, SamplesRows
from pcm_rl.rollouts.cut import Cut, Watch
from pcm_rl.rollouts.decisions import AT_ONCE, Decisions, Queue
from pcm_rl.rollouts.failures import NOT_FINITE, Failures, not_finite
from pcm_rl.rollouts.rows import Part, Policy, assemble, decide, outcome

Pair = tuple["_Episode", Answer]  # an episode that waits for a decision upon its worker's answer


@dataclass
class _Episode:
    """The part of an episode that has been played."""

    id: int
    init_state: int
    group: int
    task: int
    instruction: str | None = None
    parts: list[Part] = field(default_factory=list)

    def restart(self) -> None:
        self.parts, self.instruction = [], None


class _Schedule:
    """The episodes that wait, the episode that each worker plays, and the groups that are dropped."""

    def __init__(
        self, episodes: list[_Episode], played: list[list[int]], failures: Failures, keep: int | None = None
    ) -> None:
        self.waiting = list(episodes)
        self.playing: dict[int, _Episode] = {}
        self.failures, self._played, self._keep = failures, played, keep

    @property
    def dropped_groups(self) -> set[int]:
        return self.failures.dropped_groups

    def next(self, worker: int) -> _Episode | None:
        """The first waiting episode of a task that this worker has a simulator of, else nobody has, else the first."""
        if not self.waiting:
            return None
        worker_tasks, all_tasks = self._played[worker], set().union(*self._played)
        ranks = [0 if e.task in worker_tasks else 1 if e.task not in all_tasks else 2 for e in self.waiting]
        episode = self.waiting.pop(ranks.index(min(ranks)))
        if episode.task in worker_tasks:
            worker_tasks.remove(episode.task)
        worker_tasks.append(episode.task)
        if self._keep is not None:
            del worker_tasks[: -self._keep]  # their simulators are closed
        self.playing[worker] = episode
        return episode

    def failed(self, failure: Failure) -> _Episode:
        """Queues the episode again, or drops its group; the episode."""
        episode = self.playing.pop(failure.worker)
        episode.restart()
        if episode.group in self.dropped_groups:
            return episode
        self.waiting.insert(0, episode)
        failed = f"worker {failure.worker}", failure.reason, failure.error
        self.failures.add([episode.id], [episode.init_state], episode.group, failed)
        self.waiting = [e for e in self.waiting if e.group not in self.dropped_groups]
        return episode


def collect_from_workers(
    env: WorkerVectorEnv,
    policy: Policy,
    init_state: Tensor,
    group: Tensor,
    *,
    task: Tensor | None,
    device: torch.device,
    failures: Failures,
    cut: Cut | None = None,
    decisions: Decisions = AT_ONCE,
) -> TensorDict:
    """:func:`~pcm_rl.rollouts.collect.collect_episodes` for workers; ``failures`` says what follows from each."""
    base = int(torch.randint(2**62, ()))
    tasks = [0] * len(init_state) if task is None else task.tolist()
    episodes = [
        _Episode(i, *fields) for i, fields in enumerate(zip(init_state.tolist(), group.tolist(), tasks, strict=True))
    ]
    schedule = _Schedule(episodes, env.played, failures, env.keep_tasks)
    watch = None if cut is None else Watch(cut, policy)
    env.cancel()  # commands that an interrupted caller may have left
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _Collection(env, policy, schedule, watch, Queue(decisions), device, base).play()
    return _rows(episodes, failures, group, watch)


@dataclass
class _Collection:
    """Whose turn it is: workers that start, that have answered, and that get their next chunk."""

    env: WorkerVectorEnv
    policy: Policy
    schedule: _Schedule
    watch: Watch | None
    queue: Queue[int, Pair]
    device: torch.device
    base: int  # of the seeds

    def play(self) -> None:
        """Play all episodes."""
        readers = observation_readers(self.env.single_observation_space)
        while self.schedule.waiting or self.schedule.playing:
            self._start()
            for result in self._results():
                result = _read(self.env, self.policy, readers, result)
                if isinstance(result, Failure):
                    self._failed(result)
                else:
                    self._answered(result)
            self._start()  # before a decision, which does not wait where nobody else can come
            for pairs in _calls(self.policy, self._due()):
                self._decide(pairs)

    def _start(self) -> None:
        for worker in self.env.free:  # also those that wait for a decision
            if worker not in self.schedule.playing and (episode := self.schedule.next(worker)) is not None:
                self.env.start(worker, {"init_state": episode.init_state})

    @property
    def _coming(self) -> int:
        """Workers that execute something."""
        return len(self.schedule.playing) - len(self.queue)

    def _results(self) -> list[Answer | Failure]:
        if not self._coming and self.queue:  # nobody else can come
            return []
        patience = self.queue.patience(time.monotonic(), self._coming)
        return self.env.wait(complaints=False, seconds=patience)

    def _failed(self, failure: Failure) -> None:
        self.queue.drop(failure.worker)
        if failure.worker not in self.schedule.playing:  # it was to play the rest of an episode that was cut
            return
        episode = self.schedule.failed(failure)
        if self.watch is not None:
            self.watch.restart(episode.id)

    def _answered(self, answer: Answer) -> None:
        episode = self.schedule.playing[answer.worker]
        _record(episode, answer, self.watch)
        ended = answer.terminated or answer.truncated
        self.schedule.failures.completed |= ended
        if ended or episode.group in self.schedule.dropped_groups:
            del self.schedule.playing[answer.worker]
            return
        shape = _shape(self.policy, self.queue.decisions, episode)
        self.queue.add(answer.worker, (episode, answer), time.monotonic(), shape)

    def _due(self) -> list[Pair]:
        """Those who are decided for now, without those whose group was dropped while they waited."""
        due = []
        for episode, answer in self.queue.take(time.monotonic(), self._coming):
            if episode.group in self.schedule.dropped_groups:
                del self.schedule.playing[answer.worker]
            else:
                due.append((episode, answer))
        return due

    def _decide(self, pairs: list[Pair]) -> None:
        """One call of the policy, and what its workers do upon it."""
        seeds = [_seed_of(self.base, episode.id, len(episode.parts)) for episode, _ in pairs]
        rows = self.queue.decisions.rows
        with _sampling(self.policy, seeds, self.device, rows):
            chunks = _act(self.policy, pairs, self.device, rows)
        for (episode, answer), chunk in zip(pairs, chunks, strict=True):
            if self.watch is not None and self.watch.ends(episode.parts[-1], [episode.instruction])[0]:
                del episode.parts[-1], self.schedule.playing[answer.worker]  # the worker is free for another episode
                self.schedule.failures.completed = True
            else:
                self.env.send(answer.worker, chunk)


def _read(
    env: WorkerVectorEnv, policy: Policy, readers: dict[NestedKey, Reader], result: Answer | Failure
) -> Answer | Failure:
    """The answer with its observation as tensors ``[1, ...]``; a failure where it has a number that is not finite."""
    if isinstance(result, Failure):
        return result
    read = {key: value[None] for key, value in read_observation(readers, result.observation).items()}
    ended = result.terminated or result.truncated  # nothing is decided upon the last observation
    if not math.isfinite(result.reward) or (not ended and not_finite(policy, read)):
        return env.lose(result.worker, NOT_FINITE)
    return result._replace(observation=read)


def _record(episode: _Episode, answer: Answer, watch: Watch | None) -> None:
    """Complete the row of the chunk that was executed, or record the instruction that came with the reset."""
    if not episode.parts:
        episode.instruction = answer.info.get("instruction")
        return
    info = answer.info
    values = (answer.reward, answer.terminated, answer.truncated, info["action_is_pad"], info["success"])
    episode.parts[-1] |= outcome(*(np.asarray([value]) for value in values))
    if watch is not None:
        watch.executed(episode.parts[-1])


def _shape(policy: Policy, decisions: Decisions, episode: _Episode) -> int | None:
    """What tells rows apart that cannot share a forward pass of a fixed shape; None where it is not fixed."""
    if decisions.rows is None or episode.instruction is None or not isinstance(policy, PadsPrompts):
        return None
    return policy.padded_length(episode.instruction)


def _calls(policy: Policy, ready: list[Pair]) -> list[list[Pair]]:
    """The episodes of each call of the policy: all that wait if it samples each row with its own seed, else one."""
    if not ready:
        return []
    return [ready] if isinstance(policy, SamplesRows) else [[pair] for pair in ready]


def _act(policy: Policy, pairs: list[Pair], device: torch.device, rows: int | None) -> np.ndarray:
    """The next chunk of each episode, ``[n, L, D]``; starts its row."""
    count = torch.tensor([len(episode.parts) for episode, _ in pairs])
    part = decide(
        policy,
        {key: torch.cat([answer.observation[key] for _, answer in pairs]) for key in pairs[0][1].observation},
        [episode.instruction for episode, _ in pairs],
        init_state=torch.tensor([episode.init_state for episode, _ in pairs]),
        chunk=count,
        device=device,
        rows=rows,
    )
    part |= {EPISODE: torch.tensor([episode.id for episode, _ in pairs]), CHUNK_ID: count}
    for i, (episode, _) in enumerate(pairs):
        episode.parts.append({key: value[i : i + 1].clone() for key, value in part.items()})
    return part[CHUNK].numpy()


def _seed_of(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def _sampling(policy: Policy, seeds: list[int], device: torch.device, rows: int | None) -> Iterator[None]:
    """Seed the policy's sampling; :func:`torch.manual_seed` would also seed devices that are not restored."""
    if isinstance(policy, SamplesRows):
        fill = [seeds[0]] * (rows - len(seeds)) if rows is not None else []
        padded = rows is not None and isinstance(policy, PadsPrompts)
        with policy.seeded([*seeds, *fill]), policy.padded() if padded else contextlib.nullcontext():
            yield
        return
    torch.default_generator.manual_seed(seeds[0])
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seeds[0])
    yield


def _rows(episodes: list[_Episode], failures: Failures, group: Tensor, watch: Watch | None) -> TensorDict:
    complete = [episode for episode in episodes if episode.group not in failures.dropped_groups]
    if not complete:
        return failures.nothing_left()
    for i, episode in enumerate(complete):
        for part in episode.parts:
            part[EPISODE].fill_(i)
    parts = [part for episode in complete for part in episode.parts]
    numbers = torch.tensor([episode.id for episode in complete])
    rows = assemble(parts, group[numbers], [episode.instruction for episode in complete])
    return rows if watch is None else watch.write(rows, numbers)
