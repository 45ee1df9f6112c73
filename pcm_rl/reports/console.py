"""The console for tables."""

from __future__ import annotations

from rich.console import Console

PIPE_WIDTH = 200  # characters; without a terminal rich uses 80 and breaks wider tables


def table_console() -> Console:
    """A console as wide as the terminal, and wide enough for any of our tables in a pipe or a file."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)
