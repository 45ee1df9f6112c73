"""The documentation says what the CSV files say, and its links lead somewhere."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def test_tables_are_those_of_the_results() -> None:
    checked = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, f"{checked.stdout}{checked.stderr}\nrun make figures"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [path for path, _ in LINK.findall(page.read_text()) if not (page.parent / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_headings(page: Path) -> None:
    links = [(path, anchor) for path, anchor in LINK.findall(page.read_text()) if anchor]
    missing = [f"{path}#{anchor}" for path, anchor in links
               if anchor not in anchors(page.parent / path if path else page)]  # fmt: skip
    assert not missing


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_comparisons_are_collected_without_their_steps(tmp_path: Path) -> None:
    head = {"method": "pcm", "budget": "12", "seed": "3"}
    step = {**head, "chunks_valid": "30", "chunks_kept": "11", "loss": "1", "score/tail": "0.123456", "kept/tail": ""}
    skipped = {**step, "chunks_valid": "9", "chunks_kept": ""}
    other = {**step, "method": "full-valid", "budget": "", "chunks_kept": "30"}
    rows = {
        "compare": [{**head, "after": "0.5"}, {**head, "method": "full-valid", "budget": "", "after": "0.25"}],
        "compare-steps": [{**row, "step": str(n)} for n, row in enumerate([step, skipped, step, other])],
        "compare-evals": [head],
        "compare-stats": [head],
    }
    results = tmp_path / "results"
    results.mkdir()
    for name, table in rows.items():
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    program = (
        "import sys; from pathlib import Path; from collect import collect; collect('clean', *map(Path, sys.argv[1:]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path), str(results)], cwd=ROOT / "benchmarks", check=True)

    def read(name: str) -> list[dict[str, str]]:
        with (results / name).open(newline="") as file:
            return list(csv.DictReader(file))

    runs = read("methods-clean-runs.csv")
    assert [(run["after"], run["chunks_valid"], run["chunks_kept"]) for run in runs] == [
        ("0.5", "60", "22"),
        ("0.25", "30", "30"),
    ]
    phases = read("methods-clean-phases.csv")
    assert [row["step"] for row in phases] == ["0", "1", "2"]
    assert phases[0] == {**head, "step": "0", "score/tail": "0.1235", "kept/tail": ""}
    assert not (results / "methods-clean-steps.csv").exists()
    assert read("methods-clean.csv") == read("methods-clean-stats.csv") == [head]
