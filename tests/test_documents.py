"""The documentation says what the CSV files say, and its links lead somewhere."""

from __future__ import annotations

import ast
import csv
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pcm_rl.config import config_keys

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS, ROOT / "benchmarks" / "README.md"]
PICTURE = re.compile(r'<img src="([^"]+)"')
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def test_tables_are_those_of_the_results() -> None:
    checked = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, f"{checked.stdout}{checked.stderr}\nrun make figures"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    paths = [path for path, _ in LINK.findall(page.read_text())] + PICTURE.findall(page.read_text())
    missing = [path for path in paths if not (page.parent / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_headings(page: Path) -> None:
    links = [(path, anchor) for path, anchor in LINK.findall(page.read_text()) if anchor]
    missing = [f"{path}#{anchor}" for path, anchor in links
               if anchor not in anchors(page.parent / path if path else page)]  # fmt: skip
    assert not missing


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    linked = {path for path, _ in LINK.findall(text)}
    assert not [str(page.relative_to(ROOT)) for page in DOCS if str(page.relative_to(ROOT)) not in linked]


def test_every_room_has_its_line() -> None:
    """With numbers of files and lines that are about right, and in the order that import-linter holds."""
    package = ROOT / "pcm_rl"
    rooms = {
        f"`{folder.name}/`": sorted(folder.rglob("*.py")) for folder in package.iterdir() if any(folder.glob("*.py"))
    }
    rooms["the method"] = [path for path in sorted(package.glob("*.py")) if path.name != "__init__.py"]
    table = re.findall(r"^\| ([^|]+) \| [^|]+ \| (\d+) \| (\d+) \|$", (ROOT / "docs/architecture.md").read_text(), re.M)
    assert {name for name, *_ in table} == set(rooms)
    for name, files, lines in table:
        true = len(rooms[name]), sum(len(path.read_text().splitlines()) for path in rooms[name])
        assert (int(files), int(lines)) == pytest.approx(true, rel=0.2, abs=2), f"{name} has {true} files and lines"
    layers = re.search(r"^layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert layers is not None
    order = [name for layer in re.findall(r'"(.+?)"', layers[1]) for name in layer.split(" | ")]
    held = [name.strip("`/").removesuffix(".py") for name, *_ in table if name != "the method"]
    assert held == [name for name in order if name in held]


def test_the_papers_equations_lead_to_functions() -> None:
    text = (ROOT / "docs" / "paper.md").read_text()
    names = re.findall(r"`([\w.]+)`", text[: text.index("| the paper's setting")])
    for name in (name for name in names if not name.endswith(".py")):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module or "pcm_rl"), attribute) or name == "pcm_rl", name


NOT_OPTIONS = {"env.rollout"}  # TorchRL's method


@pytest.mark.parametrize("page", [page for page in DOCS if page.name != "history.md"], ids=lambda page: page.name)
def test_options_named_are_options(page: Path) -> None:
    sections = "|".join(sorted({key.partition(".")[0] for key in config_keys() if "." in key}))
    named = set(re.findall(rf"`((?:{sections})(?:\.\w+)+)", page.read_text())) - NOT_OPTIONS
    beside = {key for known in config_keys() for key in (known, known.rpartition(".")[0])}
    free = ("env.kwargs.", "env.tasks.", "env.images.", "policy.options.", "advantage.options.", "env.labeller_kwargs.")
    assert not [key for key in named - beside if not key.startswith(free) and not key.endswith((".py", ".safetensors"))]


def test_messages_that_pages_quote_are_in_the_source() -> None:
    """A page writes … where a message has a value; a table of messages is one under "Errors"."""
    messages = "\n".join(text for path in sorted((ROOT / "pcm_rl").rglob("*.py")) for text in texts(path))
    quoted = [(page, text) for page in DOCS for text in quotes(page)]
    assert len(quoted) > 50
    assert not [(page.name, text) for page, text in quoted if text not in messages]


def quotes(page: Path) -> list[str]:
    """Messages in the first column of a page's tables of messages; those of other packages are not in code type."""
    tables = re.findall(r"^\| message \|.*\n\|[-|]+\n((?:\|.*\n)*)", page.read_text(), re.M)
    cells = [row.split(" | ")[0].removeprefix("| ") for table in tables for row in table.splitlines()]
    return [found[2] for cell in cells if (found := re.fullmatch(r"(`+)(.+?)\1", cell))]


def texts(path: Path) -> list[str]:
    """Every text in a file, with … for what is put into it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            found.append(re.sub("…+", "…", "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


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


def test_every_fault_has_a_test_that_exists() -> None:
    """The last column of every row of ``docs/reliability.md`` names tests: ``path::name``."""
    faults, *_ = (ROOT / "docs" / "reliability.md").read_text().split("## Coverage and mutation testing")
    rows = re.findall(r"^\|.*\| *(.*?) *\|$", faults, re.MULTILINE)
    cells = [cell for cell in rows if cell != "test" and set(cell) != {"-"}]
    for cell in cells:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cell)
        assert named, f"a row names no test: {cell}"
        for path, name in named:
            assert re.search(rf"^ *def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"
