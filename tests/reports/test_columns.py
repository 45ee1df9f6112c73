from __future__ import annotations

import pytest

from pcm_rl.phases import Phase
from pcm_rl.reports.columns import EVALUATION, METRICS, headers, metrics_table


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
