from __future__ import annotations

import signal

import pytest

from pcm_rl.training.signals import SIGNALS


@pytest.fixture
def no_nohup():
    """Signals as in a terminal: tests that run in the background of a shell have Ctrl-C ignored, as with nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
