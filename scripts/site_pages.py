"""The documentation site: gathers its pages in build/pages, and builds them with Zensical into build/site.

    python scripts/site_pages.py            build/site/index.html (make docs); warnings are errors
    python scripts/site_pages.py --gather   the pages alone, for `zensical serve`

A page in ``docs/`` links to files of the repository: sources, raw data, other Markdown files. The site has them too. A
Markdown file or a notebook is a page, a source is a page that shows it, a folder is a list of its files, and everything
else is copied. So the same link works on the site and in the repository, and the site needs no address of a repository.
Public names get a page for each module, made by mkdocstrings from their docstrings.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reference import PUBLIC, public

ROOT = Path(__file__).parents[1]
DOCS, PAGES, SITE = ROOT / "docs", ROOT / "build" / "pages", ROOT / "build" / "site"
LINK = re.compile(r'(\]\(|<img src=")(?!\w+:|#)([^)#\s"]+)')
FENCE = re.compile(r"(^````?\w*\n.*?^````?$)", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):(<code>)~?")  # Sphinx's, which editors know
SHOWN = {".py": "python", ".yaml": "yaml", ".sbatch": "bash", ".sh": "bash", ".toml": "toml"}


def main() -> None:
    """Gather and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gather", action="store_true", help="do not build")
    options = parser.parse_args()
    gather(PAGES)
    if options.gather:
        return
    if importlib.util.find_spec("zensical") is None:
        raise SystemExit('the site needs Python 3.11 or newer and Zensical: pip install -e ".[docs]"')
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(built.stderr)
    if built.returncode or "griffe: " in built.stderr:  # what is wrong with a docstring does not end a build
        raise SystemExit("the site has errors: see above")
    for page in (SITE / "reference").rglob("*.html"):
        page.write_text(ROLE.sub(r"\1", page.read_text()))
    print(f"built: {SITE / 'index.html'}")


def gather(folder: Path) -> None:
    """All pages, with links among each other, in place of what the folder has."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder)
    for page in DOCS.rglob("*.md"):
        (folder / place(page)).write_text(relinked(page, page.read_text()))
    for path in outside():
        target = folder / place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".md":
            target.write_text(shown(path))
        else:
            shutil.copyfile(path, target)
    (folder / "reference").mkdir()
    for name in PUBLIC:
        (folder / "reference" / f"{name}.md").write_text(reference(name))


def outside() -> set[Path]:
    """What pages link to outside of ``docs/``, directly or through such a page."""
    found: set[Path] = set()
    waiting = sorted(DOCS.rglob("*.md"))
    while waiting:
        for path in linked(waiting.pop()):
            if path in found or path.is_relative_to(DOCS):
                continue
            found.add(path)
            if path.is_dir():
                found |= set(listed(path))
            elif path.suffix == ".md":
                waiting.append(path)
    return found


def linked(page: Path) -> Iterator[Path]:
    """Files and folders of the repository that a page links to."""
    for _, target in LINK.findall(FENCE.sub("", page.read_text())):
        path = (page.parent / target).resolve()
        if path.exists() and path.is_relative_to(ROOT):
            yield path


def listed(folder: Path) -> list[Path]:
    """Files directly below ``folder``."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def place(path: Path) -> str:
    """Where a file or folder of the repository is on the site."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = f"source/{path.relative_to(ROOT).as_posix()}"
    if path.is_dir():
        return f"{name}/index.md"
    if path.suffix == ".md":  # a readme would be the first page of its folder
        return name.lower().replace("readme", "about")
    return f"{name}.md" if path.suffix in (*SHOWN, ".ipynb") else name


def shown(path: Path) -> str:
    """The page of a file or folder outside of ``docs/``."""
    if path.suffix == ".md":
        return relinked(path, path.read_text())
    if path.suffix == ".ipynb":
        return relinked(
            path, "\n\n".join(part for cell in json.loads(path.read_text())["cells"] for part in parts(cell))
        )
    title = f"# {path.relative_to(ROOT)}"
    if path.is_dir():
        return relinked(path, "\n".join([title, "", *(f"- [{one.name}]({one.name})" for one in listed(path))]))
    return f"---\nsearch:\n  exclude: true\n---\n\n{title}\n\n````{SHOWN[path.suffix]}\n{path.read_text()}````\n"


def parts(cell: dict[str, Any]) -> Iterator[str]:
    """The Markdown of a notebook's cell: text, or code and what it printed and drew."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![what the cell draws](data:image/png;base64,{''.join(data['image/png']).strip()})"
        elif text := "".join(output.get("text", data.get("text/plain", ""))).strip():
            yield f"```text\n{text}\n```"


def relinked(path: Path, text: str) -> str:
    """The Markdown of a file or folder with the links of the site."""
    home, page = path if path.is_dir() else path.parent, place(path)

    def link(found: re.Match[str]) -> str:
        target = (home / found[2]).resolve()
        if not (target.exists() and target.is_relative_to(ROOT)):
            return found[0]
        return found[1] + posixpath.relpath(place(target), posixpath.dirname(page) or ".")

    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in FENCE.split(text))


def reference(name: str) -> str:
    """The page of a public module: its functions and classes, each with its docstring."""
    found = [key for key, value in public(name).items() if inspect.isfunction(value) or inspect.isclass(value)]
    return "\n\n".join([f"# {name}", *(f"::: {name}.{key}" for key in found)]) + "\n"


if __name__ == "__main__":
    main()
