from __future__ import annotations

import re
from pathlib import Path

import pytest

from pcm_rl.phases import Phase
from pcm_rl.reports.columns import EVALUATION, METRICS, evaluation_table, headers, metrics_table

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.mark.parametrize("columns", [METRICS, EVALUATION])
def test_every_column_is_explained_once_and_begins_with_the_step(columns):
    names = headers(columns)
    assert names[0] == "step" and len(set(names)) == len(names)
    assert all(column.meaning for column in columns)


def test_columns_of_the_phases_have_one_line_and_one_header_each():
    assert headers(METRICS)[-2 * len(Phase) :] == [
        f"{name}/{phase.label}" for name in ("candidates", "kept") for phase in Phase
    ]
    lines = metrics_table().splitlines()
    assert len(lines) == 2 + len(METRICS) and all(line.count("|") == 5 for line in lines)
    assert sum("/<phase>" in line for line in lines) == 4


@pytest.mark.parametrize(("name", "table"), [("metrics", metrics_table), ("evaluation", evaluation_table)])
def test_the_page_holds_the_tables(name, table):
    found = re.search(rf"<!-- table: {name} -->\n(.*?)<!-- end of table -->", PAGE.read_text(), re.DOTALL)
    assert found is not None and found[1] == table()
