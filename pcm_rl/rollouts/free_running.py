"""Roll out on asynchronous workers, with rows that do not depend on timing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor

from pcm_rl.envs.observation import Reader, observation_readers, read_observation
from pcm_rl.envs.workers import Answer, Failure, WorkerVectorEnv
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE
from pcm_rl.policies.family import SamplesRows
from pcm_rl.rollouts.cut import Cut, Watch
from pcm_rl.rollouts.failures import NOT_FINITE, Failures, not_finite
from pcm_rl.rollouts.rows import Part, Policy, assemble, decide, outcome


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

    def __init__(self, episodes: list[_Episode], played: list[set[int]], failures: Failures) -> None:
        self.waiting = list(episodes)
        self.playing: dict[int, _Episode] = {}
        self.failures, self._played = failures, played

    @property
    def dropped_groups(self) -> set[int]:
        return self.failures.dropped_groups

    def next(self, worker: int) -> _Episode | None:
        """The first waiting episode of a task that this worker has played, else that no worker has, else the first."""
        if not self.waiting:
            return None
        worker_tasks, all_tasks = self._played[worker], set().union(*self._played)
        ranks = [0 if e.task in worker_tasks else 1 if e.task not in all_tasks else 2 for e in self.waiting]
        episode = self.waiting.pop(ranks.index(min(ranks)))
        worker_tasks.add(episode.task)
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
) -> TensorDict:
    """:func:`~pcm_rl.rollouts.collect.collect_episodes` for workers; ``failures`` says what follows from each."""
    base = int(torch.randint(2**62, ()))
    readers = observation_readers(env.single_observation_space)
    tasks = [0] * len(init_state) if task is None else task.tolist()
    episodes = [
        _Episode(i, *fields) for i, fields in enumerate(zip(init_state.tolist(), group.tolist(), tasks, strict=True))
    ]
    schedule = _Schedule(episodes, env.played, failures)
    watch = None if cut is None else Watch(cut, policy)
    env.cancel()  # commands that an interrupted caller may have left
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        while schedule.waiting or schedule.playing:
            for worker in env.free:
                if (episode := schedule.next(worker)) is not None:
                    env.start(worker, {"init_state": episode.init_state})
            ready: list[tuple[_Episode, Answer]] = []
            for result in env.wait(complaints=False):
                result = _read(env, policy, readers, result)
                if isinstance(result, Failure):
                    episode = schedule.failed(result)
                    if watch is not None:
                        watch.restart(episode.id)
                    continue
                episode = schedule.playing[result.worker]
                _record(episode, result, watch)
                ended = result.terminated or result.truncated
                failures.completed |= ended
                if ended or episode.group in schedule.dropped_groups:
                    del schedule.playing[result.worker]
                    continue
                ready.append((episode, result))
            for pairs in _calls(policy, ready):
                seeds = [_seed_of(base, episode.id, len(episode.parts)) for episode, _ in pairs]
                with _sampling(policy, seeds, device):
                    chunks = _act(policy, pairs, device)
                for (episode, answer), chunk in zip(pairs, chunks, strict=True):
                    if watch is not None and watch.ends(episode.parts[-1], [episode.instruction])[0]:
                        del episode.parts[-1], schedule.playing[answer.worker]  # the worker is free for another episode
                        failures.completed = True
                    else:
                        env.send(answer.worker, chunk)
    return _rows(episodes, failures, group, watch)


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


def _calls(policy: Policy, ready: list[tuple[_Episode, Answer]]) -> list[list[tuple[_Episode, Answer]]]:
    """The episodes of each call of the policy: all that wait if it samples each row with its own seed, else one."""
    if not ready:
        return []
    return [ready] if isinstance(policy, SamplesRows) else [[pair] for pair in ready]


def _act(policy: Policy, pairs: list[tuple[_Episode, Answer]], device: torch.device) -> np.ndarray:
    """The next chunk of each episode, ``[n, L, D]``; starts its row."""
    count = torch.tensor([len(episode.parts) for episode, _ in pairs])
    part = decide(
        policy,
        {key: torch.cat([answer.observation[key] for _, answer in pairs]) for key in pairs[0][1].observation},
        [episode.instruction for episode, _ in pairs],
        init_state=torch.tensor([episode.init_state for episode, _ in pairs]),
        chunk=count,
        device=device,
    )
    part |= {EPISODE: torch.tensor([episode.id for episode, _ in pairs]), CHUNK_ID: count}
    for i, (episode, _) in enumerate(pairs):
        episode.parts.append({key: value[i : i + 1].clone() for key, value in part.items()})
    return part[CHUNK].numpy()


def _seed_of(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def _sampling(policy: Policy, seeds: list[int], device: torch.device) -> Iterator[None]:
    """Seed the policy's sampling; :func:`torch.manual_seed` would also seed devices that are not restored."""
    if isinstance(policy, SamplesRows):
        with policy.seeded(seeds):
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
