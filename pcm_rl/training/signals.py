"""Signals: the first one ends a run at its last completed step, a second one ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from pcm_rl.processes.ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # Ctrl-C, batch systems, a closed terminal
ONE_EVENT = 3.0  # seconds in which one of several processes gets the same event more than once, directly and forwarded
OTHERS_STAY = 10.0  # seconds that the other processes stay, so that the first one gets out of an exchange with them


class Interrupted(KeyboardInterrupt):
    """A signal has ended a run. No ``Exception``, so that nobody's ``except Exception`` holds it up.

    Attributes:
        signal: The signal.
        saved: The step after which the run was saved; None where it has no checkpoint yet.
    """

    def __init__(self, number: int) -> None:
        self.signal, self.saved = signal.Signals(number), None
        super().__init__(self.signal.name)

    saved: int | None

    @property
    def status(self) -> int:
        """The exit status, such as 130 or 143."""
        return 128 + self.signal


class Listener:
    """Takes the signals of a run.

    Args:
        ranks: The processes that train together.

    Attributes:
        received: The first signal, None before it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.received: Interrupted | None = None
        self._ranks, self._process, self._at = ranks, os.getpid(), 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise ``Interrupted`` wherever the main thread is: what it is at is given up."""
        again = self.received is not None
        if os.getpid() != self._process or (again and time.monotonic() - self._at >= self._one_event):
            signal.signal(number, signal.SIG_DFL)  # a forked worker, or the second signal
            os.kill(os.getpid(), number)
            return
        if again:
            return
        self.received, self._at = Interrupted(number), time.monotonic()
        if self._ranks.first:
            raise self.received
        # only the first process saves; it may wait for this one in an exchange
        leave = threading.Timer(OTHERS_STAY, os._exit, [self.received.status])
        leave.daemon = True
        leave.start()

    def check(self) -> None:
        """Raise ``Interrupted`` after a signal, in case the place where it was raised has swallowed it."""
        if self.received is not None and self._ranks.first:
            raise self.received

    @property
    def _one_event(self) -> float:
        return ONE_EVENT if self._ranks.size > 1 else 0.0


@contextlib.contextmanager
def listening(ranks: Ranks) -> Iterator[Listener]:
    """Take the signals that are not ignored already, as those of ``nohup`` are; only a main thread can."""
    listener = Listener(ranks)
    if threading.current_thread() is not threading.main_thread():
        yield listener
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in previous.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, listener)
    try:
        yield listener
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
