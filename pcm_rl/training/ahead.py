"""Rollouts beside the update: the next step's episodes are played by the policy as it was before it, one step stale."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.rollouts.initial_states import InitialStates

PATIENCE = 10.0  # seconds until a collection that is abandoned has come to its next decision


class Collected(NamedTuple):
    """A step's rows, the seconds that they took, and the policy that acted."""

    rows: TensorDict
    seconds: float
    policy: VLAWrapperBase


class Origin(NamedTuple):
    """What a collection began from: a run that is resumed collects the same rows from it again."""

    policy: nn.Module
    random: dict[str, Tensor]
    states: dict[str, Any]


class _Abandoned(Exception):
    """Raised in the thread of a collection that nobody waits for any more."""


@dataclass
class _Collection:
    """A collection in a thread of its own, and what has come of it."""

    origin: Origin
    abandoned: threading.Event = field(default_factory=threading.Event)
    rows: TensorDict | None = None
    seconds: float = 0.0
    error: BaseException | None = None
    thread: threading.Thread | None = None


class Ahead:
    """Collects a step's rows when they are asked for, or, with ``overlap``, beside the update before.

    Only the thread that collects may use the environments, the cursor over initial states and torch's global generators
    between :meth:`start` and :meth:`take`; :meth:`settle` waits for it.

    Args:
        collect: Plays a step's rollouts: the policy that acts, and the steps that are done.
        policy: The policy that is trained. A copy acts, which shares what is frozen.
        states: The cursor over the initial states.
        device: Where the policy runs. On a GPU the copy has a stream of its own with a higher priority: a decision does
            not wait for the micro-batch that is under way.
        overlap: Whether to collect ahead.
    """

    def __init__(
        self,
        collect: Callable[[VLAWrapperBase, int], TensorDict],
        policy: VLAWrapperBase,
        states: InitialStates,
        *,
        device: str,
        overlap: bool,
    ) -> None:
        self._collect, self._policy, self._states = collect, policy, states
        self._device = torch.device(device)
        self._owed = False  # whether the next rows are the copy's, in a run that was resumed
        self._running: _Collection | None = None
        self.acting = copy_of(policy) if overlap else None

    @property
    def origin(self) -> Origin | None:
        """What the rows that are collected ahead began from; None if there are none."""
        if self._running is not None:
            return self._running.origin
        return self._origin() if self._owed else None

    def start(self, step: int) -> None:
        """Begin to collect the rows of the step after ``step`` with the policy as it is now."""
        if self.acting is None:
            return
        refresh(self.acting, self._policy)
        self._owed = False
        running = _Collection(self._origin())
        running.thread = threading.Thread(target=self._run, args=(running, step), name="rollouts", daemon=True)
        self._running = running
        running.thread.start()

    def take(self, step: int) -> Collected:
        """The rows of the step after ``step``; waits for them, or collects them now."""
        self.settle()
        running, self._running = self._running, None
        if running is None:
            policy = self.acting if self._owed and self.acting is not None else self._policy
            self._owed, started = False, time.perf_counter()
            return Collected(self._collect(policy, step), time.perf_counter() - started, policy)
        if running.error is not None:
            raise running.error
        assert running.rows is not None and self.acting is not None
        return Collected(running.rows, running.seconds, self.acting)

    def settle(self) -> None:
        """Wait until environments and generators are free; the rows are kept."""
        if self._running is not None and self._running.thread is not None:
            self._running.thread.join()

    def abandon(self) -> None:
        """Give up what is being collected, at its next decision."""
        running, self._running = self._running, None
        if running is not None and running.thread is not None:
            running.abandoned.set()
            running.thread.join(PATIENCE)

    def owe(self) -> None:
        """Collect the next rows by ``acting``, whose weights were just restored."""
        self._owed = True

    def _origin(self) -> Origin:
        assert self.acting is not None
        return Origin(self.acting, global_states(), self._states.state_dict())

    def _run(self, running: _Collection, step: int) -> None:
        policy = self.acting
        assert policy is not None

        def go_on(*_: Any) -> None:
            if running.abandoned.is_set():
                raise _Abandoned

        hook, started = policy.register_forward_pre_hook(go_on), time.perf_counter()
        try:
            with self._stream():
                running.rows = self._collect(policy, step)
        except BaseException as error:  # raised where the rows are asked for
            running.error = error
        finally:
            hook.remove()
            running.seconds = time.perf_counter() - started

    def _stream(self) -> contextlib.AbstractContextManager[Any]:
        if self._device.type != "cuda":
            return contextlib.nullcontext()
        stream = torch.cuda.Stream(self._device, priority=-1)
        stream.wait_stream(torch.cuda.current_stream(self._device))  # the copy's weights were written there
        return torch.cuda.stream(stream)


def global_states() -> dict[str, Tensor]:
    """The states of torch's own generators."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def copy_of(policy: VLAWrapperBase) -> VLAWrapperBase:
    """A copy of ``policy`` with trained weights and buffers of its own; frozen weights are shared."""
    frozen: dict[int, Any] = {id(weight): weight for weight in policy.parameters() if not weight.requires_grad}
    return copy.deepcopy(policy, frozen)


@torch.no_grad()
def refresh(acting: nn.Module, policy: nn.Module) -> None:
    """Give ``acting``, a :func:`copy_of` the policy, its weights and buffers as they are now."""
    theirs = [*policy.parameters(), *policy.buffers()]
    for mine, other in zip([*acting.parameters(), *acting.buffers()], theirs, strict=True):
        if mine is not other:
            mine.copy_(other)
