from __future__ import annotations

import signal

import pytest

from pcm_rl.config import load_config
from pcm_rl.training.signals import SIGNALS


@pytest.fixture(scope="module")
def tiny(half_trained, tmp_path_factory):
    """``tiny(name, *overrides)``: a configuration that starts from one half-trained policy."""
    folder = tmp_path_factory.mktemp("runs")
    return lambda name, *overrides: load_config(
        None, [*half_trained, f"run_dir={folder}", f"name={name}", "save_every=2", *overrides]
    )


@pytest.fixture
def no_nohup():
    """Signals as in a terminal: tests that run in the background of a shell have Ctrl-C ignored, as with nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
