"""The pages of the documentation site (``scripts/site_pages.py``), before they are built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from reference import PUBLIC
from site_pages import FENCE, LINK, gather

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "pages"
    gather(folder)
    return folder


def test_every_link_of_every_page_leads_to_a_file_of_the_site(pages):
    found = list(pages.rglob("*.md"))
    links = [(page, link) for page in found for _, link in LINK.findall(FENCE.sub("", page.read_text()))]
    assert len(links) > 300
    assert not [(str(page), link) for page, link in links if not (page.parent / link).resolve().is_file()]


def test_what_the_documents_link_to_is_there(pages):
    assert (pages / "source/benchmarks/about.md").read_text().startswith("# ")
    assert "```python" in (pages / "source/pcm_rl/rules.py.md").read_text()
    csv = "benchmarks/results/selection.csv"
    assert (pages / "source" / csv).read_bytes() == (ROOT / csv).read_bytes()


def test_the_notebook_is_a_page(pages):
    text = (pages / "source/examples/first_steps.ipynb.md").read_text()
    assert text.startswith("# First steps") and "```python" in text and "data:image/png" in text


def test_every_page_of_the_documents_is_in_the_navigation(pages):
    shown = set(re.findall(r'"([\w/.]+\.md)"', (ROOT / "zensical.toml").read_text()))
    assert {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} <= shown
    assert {f"reference/{name}.md" for name in PUBLIC} <= shown
    assert not [name for name in shown if not (pages / name).is_file()]


def test_public_names_have_their_docstrings(pages):
    text = (pages / "reference/pcm_rl.algos.md").read_text()
    assert "::: pcm_rl.algos.PCMSampler" in text and "::: pcm_rl.algos.ChunkGRPOLoss" in text
