"""Seconds of a rollout: environments that play, cores that they need, and a card that decides for those who wait."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pcm_rl.plan.costs import Costs
from pcm_rl.plan.figures import Simulators
from pcm_rl.rollouts.decisions import Decisions


@dataclass(frozen=True)
class Rollout:
    """What a card's share of a rollout takes.

    Attributes:
        seconds: Until the last episode has ended.
        deciding: Seconds in which the card decides.
        playing: Seconds in which environments are stepped, summed over them.
        calls: Decisions.
        rows: Chunks decided.
    """

    seconds: float
    deciding: float
    playing: float
    calls: int
    rows: int

    @property
    def rows_a_call(self) -> float:
        """Mean rows of a decision."""
        return self.rows / self.calls if self.calls else 0.0


CARD, ALARM = -1, -2  # in place of a worker: the card has decided, someone has waited long enough


class _Queue:
    """One card, its environments and their cores, moved from event to event.

    An environment is in one of five states: it waits for a core, it plays (a reset or a chunk), it waits for a
    decision, it is being decided for, or it has no episode left. Whoever waits longest is served first.
    """

    def __init__(self, episodes: Sequence[int], simulators: Simulators, costs: Costs) -> None:
        self.simulators, self.costs = simulators, costs
        self.rule = Decisions(simulators.decisions, simulators.decision_wait)
        self.random = random.Random(0)  # a plan is the same every time
        self.waiting = deque(episodes)
        self.left: dict[int, int] = {}  # worker -> chunks of its episode that are not yet decided
        self.free_cores = simulators.cores
        self.for_core: deque[tuple[int, float]] = deque()
        self.for_decision: list[tuple[int, float]] = []  # worker, since when
        self.deciding: list[int] = []
        self.events: list[tuple[float, int, int]] = []  # when, number of the event, worker or one of the two below
        self.number, self.now, self.alarm = 0, 0.0, -1.0
        self.decided_s = self.played_s = 0.0
        self.calls = self.rows = 0

    def run(self) -> None:
        for worker in range(min(self.simulators.workers, len(self.waiting))):
            self._next_episode(worker)
        self._serve()
        while self.events:
            self.now = self.events[0][0]
            while self.events and self.events[0][0] == self.now:  # answers of one moment are decided together
                self._ended(heapq.heappop(self.events)[2])
            self._serve()

    def _ended(self, worker: int) -> None:
        if worker == ALARM:
            return
        if worker == CARD:
            for each in self.deciding:
                self.for_core.append((each, self.simulators.chunk_s))
            self.deciding = []
            # nobody is listened to while the card decides: whoever came meanwhile begins to wait now
            self.for_decision = [(each, min(since, self.now)) for each, since in self.for_decision]
            return
        self.free_cores += 1
        if self.left[worker]:
            self.for_decision.append((worker, math.inf if self.deciding else self.now))
        else:
            del self.left[worker]
            self._next_episode(worker)

    def _next_episode(self, worker: int) -> None:
        if self.waiting:
            self.left[worker] = self.waiting.popleft()
            self.for_core.append((worker, self.simulators.reset_s))

    def _serve(self) -> None:
        """Give free cores to environments, and the free card to those who wait for a decision."""
        while self.free_cores and self.for_core:
            worker, mean = self.for_core.popleft()
            seconds = mean * self.random.uniform(1.0 - self._half_width, 1.0 + self._half_width)
            self.free_cores -= 1
            self.played_s += seconds
            self._push(seconds, worker)
        if self.for_decision and not self.deciding:
            due = self._due()
            if due <= self.now:
                self._decide()
            elif due < math.inf and due != self.alarm:
                self.alarm = due
                self._push(due - self.now, ALARM)

    def _due(self) -> float:
        """When those who wait are decided for if nobody comes."""
        coming, since = len(self.left) - len(self.for_decision), self.for_decision[0][1]
        if coming and self.simulators.in_step:
            return math.inf
        patient = self.rule.patience(len(self.for_decision), self.now - since, coming) > 0.0
        return since + self.rule.seconds if patient else self.now

    def _decide(self) -> None:
        rows = self.simulators.decisions or len(self.for_decision)
        self.deciding = [worker for worker, _ in self.for_decision[:rows]]
        self.for_decision = self.for_decision[rows:]
        for worker in self.deciding:
            self.left[worker] -= 1
        seconds = self.costs.decision_s(rows)
        self.calls, self.rows = self.calls + 1, self.rows + len(self.deciding)
        self.decided_s += seconds
        self._push(seconds, CARD)

    @property
    def _half_width(self) -> float:
        """Of the uniform distribution with the standard deviation ``spread``."""
        return float(3.0**0.5 * self.simulators.spread)

    def _push(self, seconds: float, worker: int) -> None:
        self.number += 1
        heapq.heappush(self.events, (self.now + seconds, self.number, worker))


def play(episodes: Sequence[int], simulators: Simulators, costs: Costs) -> Rollout:
    """Play episodes on one card, event by event.

    Every environment takes the next episode, resets, and then plays chunk after chunk; before each chunk it waits for
    a decision. The card decides for all who wait when it is free, one call at a time. With ``simulators.decisions`` it
    waits for that many (at most ``simulators.decision_wait`` seconds, or until nobody else plays), decides for no more
    at once, and takes its time for as many. At most ``simulators.cores`` environments are stepped at a time, the others
    queue. Times of resets and chunks are drawn around their means, always the same ones.

    Args:
        episodes: Chunks of each, in the order in which they are handed out.
        simulators: The environments.
        costs: Of a decision.
    """
    queue = _Queue(episodes, simulators, costs)
    queue.run()
    return Rollout(queue.now, queue.decided_s, queue.played_s, queue.calls, queue.rows)
