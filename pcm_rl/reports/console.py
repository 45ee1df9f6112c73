"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console

PIPE_WIDTH = 200  # characters; rich takes 80 where there is no terminal, and breaks tables that would fit a file


def table_console() -> Console:
    """A console as wide as the terminal, and wide enough for any of our tables in a pipe or a file."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)
