from __future__ import annotations

import pytest
from rich.table import Table

from pcm_rl.reports.console import table_console


def test_a_table_in_a_pipe_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("task", *("column" * 5 for _ in range(3)))
    table.add_row("pick up the alphabet soup and place it in the basket", "1", "2", "3")
    table_console().print(table)
    assert "pick up the alphabet soup and place it in the basket" in capsys.readouterr().out
