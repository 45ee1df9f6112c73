"""Roll out on workers that go at their own pace, with rows that do not depend on that pace."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor

from pcm_rl.envs.chunked import Reader, observation_readers, read_observation
from pcm_rl.envs.workers import Answer, Failure, WorkerVectorEnv
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE
from pcm_rl.policies.family import SamplesRows
from pcm_rl.rollouts.rows import Part, Policy, assemble, decide, outcome


@dataclass
class _Episode:
    """What has been played of one episode."""

    id: int
    init_state: int
    group: int
    task: int
    told: str | None = None
    parts: list[Part] = field(default_factory=list)
    failures: int = 0

    def restart(self) -> None:
        self.parts, self.told = [], None


class _Schedule:
    """Which episodes wait, which worker plays which, and which groups are given up."""

    def __init__(self, episodes: list[_Episode], played: list[set[int]], max_tries: int) -> None:
        self.waiting = list(episodes)
        self.playing: dict[int, _Episode] = {}
        self.lost: set[int] = set()
        self._played, self._max_tries = played, max_tries

    def next(self, worker: int) -> _Episode | None:
        """The first waiting episode of a task that this worker has played, else that nobody has, else the first."""
        if not self.waiting:
            return None
        mine, anyones = self._played[worker], set().union(*self._played)
        ranks = [0 if e.task in mine else 1 if e.task not in anyones else 2 for e in self.waiting]
        episode = self.waiting.pop(ranks.index(min(ranks)))
        mine.add(episode.task)
        self.playing[worker] = episode
        return episode

    def failed(self, failure: Failure) -> None:
        """Has the episode played again, or gives its group up."""
        episode = self.playing.pop(failure.worker)
        episode.restart()
        episode.failures += 1
        if episode.failures < self._max_tries:
            self.waiting.insert(0, episode)
        elif episode.group not in self.lost:
            self.lost.add(episode.group)
            warnings.warn(
                f"group {episode.group} is left out: the episode from initial state {episode.init_state} failed "
                f"{episode.failures} times, the last time because of: {failure.reason}",
                RuntimeWarning,
                stacklevel=4,
            )
        self.waiting = [e for e in self.waiting if e.group not in self.lost]


def collect_from_workers(
    env: WorkerVectorEnv,
    policy: Policy,
    init_state: Tensor,
    group: Tensor,
    *,
    task: Tensor | None,
    device: torch.device,
    max_tries: int,
) -> TensorDict:
    """:func:`~pcm_rl.rollouts.collect.collect_episodes` for workers; arguments as there."""
    base = int(torch.randint(2**62, ()))
    readers = observation_readers(env.single_observation_space)
    tasks = [0] * len(init_state) if task is None else task.tolist()
    episodes = [
        _Episode(i, *about) for i, about in enumerate(zip(init_state.tolist(), group.tolist(), tasks, strict=True))
    ]
    schedule = _Schedule(episodes, env.played, max_tries)
    env.cancel()  # what an interrupted caller may have left under way
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        while schedule.waiting or schedule.playing:
            for worker in env.free:
                if (episode := schedule.next(worker)) is not None:
                    env.start(worker, {"init_state": episode.init_state})
            ready: list[tuple[_Episode, Answer]] = []
            for result in env.wait():
                if isinstance(result, Failure):
                    schedule.failed(result)
                    continue
                episode = schedule.playing[result.worker]
                _record(episode, result)
                if result.terminated or result.truncated or episode.group in schedule.lost:
                    del schedule.playing[result.worker]
                    continue
                ready.append((episode, result))
            for asking in _calls(policy, ready):
                seeds = [_seed_of(base, episode.id, len(episode.parts)) for episode, _ in asking]
                with _sampling(policy, seeds, device):
                    chunks = _act(policy, asking, readers, device)
                for (_, answer), chunk in zip(asking, chunks, strict=True):
                    env.send(answer.worker, chunk)
    return _rows(episodes, schedule.lost, group)


def _record(episode: _Episode, answer: Answer) -> None:
    """Complete the row of the chunk that this answers, or note the instruction that came with the reset."""
    if not episode.parts:
        episode.told = answer.info.get("instruction")
        return
    info = answer.info
    values = (answer.reward, answer.terminated, answer.truncated, info["action_is_pad"], info["success"])
    episode.parts[-1] |= outcome(*(np.asarray([value]) for value in values))


def _calls(policy: Policy, ready: list[tuple[_Episode, Answer]]) -> list[list[tuple[_Episode, Answer]]]:
    """Who is decided for in one call: all who wait, where the policy samples each row under a seed of its own."""
    if not ready:
        return []
    return [ready] if isinstance(policy, SamplesRows) else [[one] for one in ready]


def _act(
    policy: Policy, asking: list[tuple[_Episode, Answer]], readers: dict[NestedKey, Reader], device: torch.device
) -> np.ndarray:
    """The next chunk of each episode, ``[n, L, D]``; its row is begun."""
    count = torch.tensor([len(episode.parts) for episode, _ in asking])
    seen = [read_observation(readers, answer.observation) for _, answer in asking]
    part = decide(
        policy,
        {key: torch.stack([one[key] for one in seen]) for key in seen[0]},
        [episode.told for episode, _ in asking],
        init_state=torch.tensor([episode.init_state for episode, _ in asking]),
        chunk=count,
        device=device,
    )
    part |= {EPISODE: torch.tensor([episode.id for episode, _ in asking]), CHUNK_ID: count}
    for i, (episode, _) in enumerate(asking):
        episode.parts.append({key: value[i : i + 1].clone() for key, value in part.items()})
    return part[CHUNK].numpy()


def _seed_of(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def _sampling(policy: Policy, seeds: list[int], device: torch.device) -> Iterator[None]:
    """Seed what the policy samples with; :func:`torch.manual_seed` would reach devices that are not restored."""
    if isinstance(policy, SamplesRows):
        with policy.seeded(seeds):
            yield
        return
    torch.default_generator.manual_seed(seeds[0])
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seeds[0])
    yield


def _rows(episodes: list[_Episode], lost: set[int], group: Tensor) -> TensorDict:
    whole = [episode for episode in episodes if episode.group not in lost]
    if not whole:
        raise RuntimeError("no episode is left: every group was given up; the warnings say why")
    for i, episode in enumerate(whole):
        for part in episode.parts:
            part[EPISODE].fill_(i)
    kept = group[torch.tensor([episode.id for episode in whole])]
    return assemble([part for episode in whole for part in episode.parts], kept, [episode.told for episode in whole])
