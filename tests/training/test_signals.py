from __future__ import annotations

import contextlib
import os
import signal

import pytest

from pcm_rl.processes.ranks import ALONE, Ranks
from pcm_rl.training.signals import SIGNALS, Interrupted, listening

pytestmark = pytest.mark.usefixtures("no_nohup")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_whatever_is_under_way(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, listening(ALONE):
        signal.raise_signal(number)
    assert caught.value.status == 128 + number and str(caught.value) == number.name
    assert isinstance(caught.value, KeyboardInterrupt), "an `except Exception` does not hold it up"
    assert signal.getsignal(number) == before


def test_what_swallows_it_does_not_swallow_the_end():
    with pytest.raises(Interrupted), listening(ALONE) as listener:
        listener.check()
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            pass
        listener.check()


def test_nohup_stays_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening(ALONE) as listener:
            signal.raise_signal(signal.SIGHUP)
            listener.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def two_signals(processes, out):
    """In a process of its own: SIGUSR1 and then SIGTERM, as the first of so many."""
    with contextlib.suppress(KeyboardInterrupt), listening(Ranks(0, processes)):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt as stop:
                os.write(out, str(stop).encode())


@pytest.mark.parametrize(("processes", "status"), [(1, -signal.SIGTERM), (2, 0)])
def test_a_second_signal_ends_at_once_but_torchrun_sends_one_event_twice(processes, status):
    out, into = os.pipe()
    child = os.fork()
    if not child:
        two_signals(processes, into)
        os._exit(0)
    os.close(into)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    assert os.read(out, 100) == b"SIGUSR1"
    os.close(out)


def test_only_the_first_process_stops_at_once_the_others_stay_for_a_moment(monkeypatch):
    timers = []
    monkeypatch.setattr("pcm_rl.training.signals.threading.Timer", lambda *given: timers.append(given) or Unstarted())
    with listening(Ranks(1, 2)) as listener:
        signal.raise_signal(signal.SIGTERM)
        listener.check()
    assert [(function, status) for _, function, status in timers] == [(os._exit, [143])]


class Unstarted:
    daemon = False

    def start(self):
        pass
