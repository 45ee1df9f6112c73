"""A part of a check that may raise: its warnings and its error become findings, never a traceback."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from typing import TypeVar

from pcm_rl.config import ConfigError
from pcm_rl.phases import PhaseWarning
from pcm_rl.rollouts.first_look import Finding

T = TypeVar("T")
_IN_WORDS = (ConfigError, FileNotFoundError, FileExistsError, ImportError, FloatingPointError)  # need no name


def attempt(name: str, make: Callable[[], T]) -> Generator[Finding, None, T | None]:
    """Call ``make``; give its value, None where it raised.

    Yields:
        A warning for each ``RuntimeWarning`` and ``PhaseWarning``, and a failure for an exception.
    """
    error: Exception | None = None
    value = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = make()
        except Exception as raised:
            error = raised
    for text in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, RuntimeWarning | PhaseWarning)):
        yield Finding(name, "warn", in_one_line(text))
    if error is not None:
        yield Finding(name, "fail", described(error))
    return value


def described(error: Exception) -> str:
    """An error in one line, with its type where it is none of ours."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # a KeyError quotes itself
    kind = "" if isinstance(error, _IN_WORDS) else f"{type(error).__name__}: "
    return in_one_line(f"{kind}{text}" if text else type(error).__name__)


def in_one_line(text: str) -> str:
    """Text without line breaks."""
    return " ".join(text.split())
