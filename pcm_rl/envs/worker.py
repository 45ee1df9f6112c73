"""One environment elsewhere: the command that it executes, and until when it may take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from pcm_rl.envs.messages import Built, Message, Placed, Raised


class Link(Protocol):
    """The near end of the connection to one environment that runs elsewhere."""

    def send(self, ticket: int, method: str, argument: Any) -> None:
        """Sends a command; during a build it waits. Where nobody is left, :meth:`receive` reports that."""

    def receive(self) -> Message:
        """The next message, in the order of the commands; a death counts as one. Only where there is one."""

    def observation(self) -> Any:
        """A copy of the observation that belongs to the newest answer."""

    def dismiss(self, idle: bool) -> None:
        """Asks an idle environment to close; a busy one is killed."""

    def end(self, grace: float) -> None:
        """Kills unless it ends within `grace` seconds, and frees what it held. Ending twice is fine."""


AnyLink = TypeVar("AnyLink", bound=Link)


class Host(Protocol[AnyLink]):
    """Where environments run.

    Attributes:
        place_timeout: Seconds until a launched one sends :class:`~pcm_rl.envs.messages.Placed`; None where it begins
            to build at once.
    """

    place_timeout: float | None

    def launch(self, index: int) -> AnyLink:
        """Starts an environment and returns at once; its first messages will be `Placed`, if at all, and `Built`."""

    def ready(self, links: Sequence[AnyLink], seconds: float) -> list[AnyLink]:
        """Those that have a message, as soon as there is one; none after so many seconds."""

    def no_place(self, index: int) -> Exception:
        """What to raise where a launched one has sent nothing within the seconds of `place_timeout`."""

    def close(self) -> None:
        """Lets go of what all environments shared, after they have ended."""


class Worker:
    """Starts an environment, sends commands, receives answers, ends it.

    Commands carry a ticket. Only the answer to the latest command counts; answers to earlier ones are stale.

    Args:
        index: Position among the workers.
        host: Where it runs.
        timeout: Seconds for the answer to a command.
        build_timeout: Seconds for the environment to be built.
    """

    def __init__(self, index: int, host: Host[Any], *, timeout: float, build_timeout: float) -> None:
        self.index, self._host = index, host
        self._timeout, self._build_timeout = timeout, build_timeout
        self._ticket = 0
        self.failed_builds = 0
        self.launch()

    def launch(self) -> None:
        """Starts the environment and returns at once; :class:`Built` will come."""
        self.link: Link = self._host.launch(self.index)
        self.placed = self._host.place_timeout is None
        self.built = self.playing = False  # playing: an episode is under way
        self.pending: int | None = None  # ticket of the command whose answer is awaited
        patience = self._build_timeout if self._host.place_timeout is None else self._host.place_timeout
        self._building_until: float | None = time.monotonic() + patience
        self._answer_until: float | None = None

    @property
    def deadline(self) -> float | None:
        """Time on the monotonic clock; None while no answer is expected."""
        return self._building_until or self._answer_until

    def lateness(self) -> str:
        """The error text after the deadline.

        Raises:
            Exception: Nothing can be built, as it was given no place.
        """
        if not self.placed:
            raise self._host.no_place(self.index)
        if not self.built:
            return f"the environment was not built within {self._build_timeout:g} s"
        return f"no answer within {self._timeout:g} s"

    def first_build(self) -> Built:
        """Waits until the environment is built for the first time; a failure is an error, as it would happen again.

        Raises:
            TimeoutError: It was not built in time.
            Exception: What building it raised.
        """
        message: Message = Placed("")
        while isinstance(message, Placed):
            if not self._host.ready([self.link], max(0.0, (self.deadline or 0.0) - time.monotonic())):
                raise TimeoutError(f"worker {self.index}: {self.lateness()}")
            message = self.receive()
        if isinstance(message, Raised):
            raise message.exception("" if message.trace else f"worker {self.index}, while it was being built: ")
        assert isinstance(message, Built)
        return message

    def post(self, method: str, argument: Any) -> None:
        """Sends a command; answers to earlier ones become stale. During a build the command waits."""
        self._ticket += 1
        self.pending, self._answer_until = self._ticket, time.monotonic() + self._timeout
        self.link.send(self._ticket, method, argument)

    def forget(self) -> None:
        """Makes the answer to the pending command, if there is one, stale."""
        self.pending = self._answer_until = None

    def receive(self) -> Message:
        """The next message. Records where the environment is on its way."""
        message = self.link.receive()
        if isinstance(message, Placed):
            self.placed, self._building_until = True, time.monotonic() + self._build_timeout
        if isinstance(message, Built):
            self.built, self._building_until, self.failed_builds = True, None, 0
            if self.pending is not None:
                self._answer_until = time.monotonic() + self._timeout
        return message

    def dismiss(self) -> None:
        """Asks an idle worker to close its environment and end; a busy one is killed."""
        self.link.dismiss(self.built and self.pending is None)

    def end(self, grace: float = 0.0) -> None:
        """Kills the worker unless it ends within `grace` seconds, and frees what it held. Ending twice is fine."""
        self.link.end(grace)
