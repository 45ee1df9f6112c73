"""Write the generated parts of the documents: options, figures of a plan, public names, metrics.

    python scripts/reference.py            writes them (make reference)
    python scripts/reference.py --check    says which are not as the code has them, and fails

A generated part lies between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``. The text around it is written
by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pcm_rl.config import Config
from pcm_rl.plan.options import SECTIONS
from pcm_rl.reports.columns import evaluation_table, metrics_table

DOCS = Path(__file__).parents[1] / "docs"
PUBLIC = ("pcm_rl", "pcm_rl.algos", "pcm_rl.envs", "pcm_rl.policies", "pcm_rl.labellers")


def options() -> str:
    """Every option of a run: key, default, meaning; a table for each section."""
    return "\n\n".join(_sections(Config, ""))


def _sections(cls: type, prefix: str) -> Iterator[str]:
    rows, nested = [], []
    meanings = _attributes(cls)
    for item in dataclasses.fields(cls):
        section = item.default_factory if isinstance(item.default_factory, type) else None
        if section is not None and dataclasses.is_dataclass(section):
            nested.append((section, f"{prefix}{item.name}."))
            continue
        default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[misc]
        rows.append(f"| `{prefix}{item.name}` | `{_yaml(default)}` | {_cell(meanings[item.name])} |")
    title = f"`{prefix.rstrip('.')}`" if prefix else "The run"
    summary = _cell((inspect.getdoc(cls) or "").split("\n\n")[0])
    yield "\n".join([f"### {title}", "", summary, "", "| key | default | meaning |", "| --- | --- | --- |", *rows])
    for section, below in nested:
        yield from _sections(section, below)


def _attributes(cls: type) -> dict[str, str]:
    """Name -> meaning, from the section ``Attributes`` of a docstring."""
    text = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", text + "\n", re.DOTALL | re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value) or '""'


def _cell(text: str) -> str:
    """One line of Markdown: no roles of Sphinx, no bars that would end the cell."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", "\\|")


def figures() -> str:
    """Every figure of a plan."""
    return "\n\n".join(table for section, cls in SECTIONS.items() for table in _sections(cls, f"{section}."))


def names() -> str:
    """Public names by module: signature and first sentence."""
    return "\n\n".join(_module(name) for name in PUBLIC)


def public(name: str) -> dict[str, Any]:
    """What a module offers, by name: ``__all__``, or its own functions where it has none."""
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", None) or [
        key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == name
    ]
    return {key: getattr(module, key) for key in listed}


def _module(name: str) -> str:
    lines = [f"### `{name}`", "", "| name | what it is |", "| --- | --- |"]
    for key, value in public(name).items():
        lines.append(f"| `{key}{_signature(value)}` | {_cell(_first_sentence(value))} |")
    return "\n".join(lines)


def _signature(value: Any) -> str:
    if not callable(value) or (isinstance(value, type) and issubclass(value, (int, Warning))):
        return ""
    parameters = inspect.signature(value).parameters.values()
    shown = [
        parameter.name + ("" if parameter.default is parameter.empty else "=")
        for parameter in parameters
        if parameter.name not in ("self", "args", "kwargs")
    ]
    return f"({', '.join(shown)})"


def _first_sentence(value: Any) -> str:
    text = inspect.getdoc(value) if callable(value) else None
    if text is None:
        return ", ".join(f"`{item}`" for item in value) if isinstance(value, (dict, tuple)) else ""
    return text.split("\n\n")[0]


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {
    "options": ("configuration.md", options),
    "plan": ("plan.md", figures),
    "names": ("api.md", names),
    "metrics": ("metrics.md", metrics_table),
    "evaluation": ("metrics.md", evaluation_table),
}


def main() -> int:
    """Write or check; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, (page, make) in GENERATED.items():
        path = DOCS / page
        before = path.read_text()
        opening, end = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
        head, _, rest = before.partition(opening)
        after = f"{head}{opening}\n\n{make()}\n\n{end}{rest.partition(end)[2]}"
        if after != before:
            stale.append(page)
            if not check:
                path.write_text(after)
    print(("not as the code: " if check else "written: ") + (", ".join(stale) or "nothing"))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
