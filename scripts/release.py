"""Builds sdist and wheel and tries the wheel in empty environments, away from the source tree: ``make release``.

It tags and uploads nothing, and prints how to. ``--rehearse`` leaves out what a release needs beside its files: a
version that is no development version, its section in CHANGELOG.md, and a work tree without changes.

The interpreters are those of the classifiers in pyproject.toml, ``python3.10`` and so on, as PATH has them.
``--pythons 3.11,/opt/python3.13/bin/python`` gives others. pip's settings hold (``PIP_INDEX_URL``, its cache).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRIAL = Path(__file__).with_name("try_wheel.py")


class Refused(Exception):
    """What stands in the way of a release, a line for each thing."""


def main() -> int:
    """Refuse, or build, check, try, and say what to do next."""
    options = _parse()
    version = version_of(ROOT)
    try:
        if not options.rehearse:
            refuse(unready(version, (ROOT / "CHANGELOG.md").read_text(), *_git_state(version)))
        interpreters = found(options.pythons or ",".join(classified(ROOT)))
        with tempfile.TemporaryDirectory(prefix="pcm_rl-release-") as folder:
            built = build(Path(folder))
            refuse(differences(*built))
            for name, interpreter in interpreters.items():
                print(f"python {name}: {try_wheel(built[1], interpreter, version, Path(folder, name))}", flush=True)
            _publish(built, options.dist)
    except Refused as reason:
        print(f"release: {reason}", file=sys.stderr)
        return 2
    print(_next_steps(version, options.dist, options.rehearse))
    return 0


def version_of(root: Path) -> str:
    """The version, which stands in ``pcm_rl/__init__.py`` only."""
    return re.findall(r'^__version__ = "(.+)"$', (root / "pcm_rl" / "__init__.py").read_text(), re.MULTILINE)[0]


def classified(root: Path) -> list[str]:
    """The Pythons that the package names, such as ``3.10``."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (root / "pyproject.toml").read_text())


def unready(version: str, changelog: str, changes: str, tagged: bool) -> list[str]:
    """What a release of this version lacks.

    Args:
        version: Of the package.
        changelog: Text of CHANGELOG.md; its newest section is the version's, ``## 0.2.0`` or ``## 0.2.0 (2026-12-31)``.
        changes: What git says of the work tree; empty where nothing has changed.
        tagged: Whether there is a tag of the version.
    """
    lacks = []
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        lacks.append(f"{version} is a development version; set __version__ in pcm_rl/__init__.py, such as 0.2.0")
    newest = (re.findall(r"^## (.+)$", changelog, re.MULTILINE) or ["nothing"])[0]
    expected = version.split(".dev")[0]
    if not re.fullmatch(re.escape(expected) + r"( \(\d{4}-\d\d-\d\d\))?", newest):
        dated = f"'{expected}' or '{expected} (2026-12-31)'"
        lacks.append(f"CHANGELOG.md begins with the section {newest!r}; expected {dated}")
    if changes:
        lacks.append(f"the work tree has changes; commit or remove them:\n{changes}")
    if tagged:
        lacks.append(f"there is a tag v{version} already; give the next version")
    return lacks


def refuse(reasons: list[str]) -> None:
    """Stop if there is a reason."""
    if reasons:
        raise Refused("; ".join(reasons))


def _git_state(version: str) -> tuple[str, bool]:
    return _git("status", "--porcelain"), bool(_git("tag", "--list", f"v{version}"))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def found(pythons: str) -> dict[str, str]:
    """Version and path of each interpreter of a list such as ``3.10,/opt/bin/python3.13``; all missing ones named."""
    there, missing = {}, []
    for wanted in pythons.split(","):
        program = wanted if os.sep in wanted else f"python{wanted}"
        path = shutil.which(program)
        # a name on PATH may be no more than pyenv's hint that this version is switched off
        asked = path and subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if asked and asked.returncode == 0:
            there[asked.stdout.split()[1]] = str(path)
        else:
            missing.append(program)
    if missing:
        raise Refused(f"{', '.join(missing)} not found; install, or name what there is: --pythons 3.11,/path/to/python")
    return there


def build(folder: Path) -> tuple[Path, Path, Path]:
    """The sdist, the wheel that is built from it, and one from the source tree."""
    for outdir, arguments in (("dist", []), ("tree", ["--wheel"])):
        _run([sys.executable, "-m", "build", *arguments, "--outdir", folder / outdir, ROOT])
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,), (of_tree,) = ((folder / name).glob("*.whl") for name in ("dist", "tree"))
    _run([sys.executable, "-m", "twine", "check", "--strict", sdist, wheel])
    _run([sys.executable, "-m", "check_wheel_contents", wheel])
    return sdist, wheel, of_tree


def differences(sdist: Path, wheel: Path, of_tree: Path) -> list[str]:
    """What is not as it should be: the sdist is the repository, the wheel is the package with the recipes."""
    tracked = set(_git("ls-files", "--cached", "--others", "--exclude-standard").splitlines())
    packed = names_in_sdist(sdist) - {"PKG-INFO"}
    contents, others = contents_of_wheel(wheel), contents_of_wheel(of_tree)
    package = {name for name in contents if ".dist-info/" not in name}
    changed = {name for name in contents | others if contents.get(name) != others.get(name)}
    sets = {
        "the sdist lacks": tracked - packed,
        "the sdist alone has": packed - tracked,
        "the wheel lacks": wheel_names(tracked) - package,
        "the wheel should not have": package - wheel_names(tracked),
        "the wheels of sdist and source tree differ in": changed,
    }
    return [f"{text} {', '.join(sorted(names))}" for text, names in sets.items() if names]


def names_in_sdist(path: Path) -> set[str]:
    """Files of an sdist, without the name of its folder."""
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def contents_of_wheel(path: Path) -> dict[str, bytes]:
    """Every file of a wheel."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def wheel_names(tracked: set[str]) -> set[str]:
    """The files of the repository that belong into the wheel, with their names there."""
    recipes = {f"pcm_rl/{name}" for name in tracked if name.startswith("configs/")}
    return recipes | {name for name in tracked if name.startswith("pcm_rl/")}


def try_wheel(wheel: Path, interpreter: str, version: str, folder: Path) -> str:
    """Install the wheel into an empty environment, run what a newcomer runs there, and say what was installed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(parents=True)
    _run([interpreter, "-m", "venv", folder / "venv"], env=clean)
    python = folder / "venv" / "bin" / "python"
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel], env=clean)
    _run([python, "-m", "pip", "check", "--disable-pip-version-check"], env=clean)
    said = _run([python, "-I", TRIAL, version], env=clean, cwd=elsewhere)
    shutil.rmtree(folder)  # gigabytes, with PyTorch's CUDA build
    return said.splitlines()[-1]


def _run(command: list[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise Refused(f"{' '.join(map(str, command))} failed with status {done.returncode}:\n{done.stdout}")
    return done.stdout


def _publish(built: tuple[Path, Path, Path], dist: Path) -> None:
    dist.mkdir(parents=True, exist_ok=True)
    for path in built[:2]:
        shutil.copy(path, dist)


def _next_steps(version: str, dist: Path, rehearsed: bool) -> str:
    if rehearsed:
        return f"{dist} has sdist and wheel of {version}. This was a rehearsal: do not upload them."
    return f"""{dist} has sdist and wheel of {version}. Nothing was tagged or uploaded. Next:
    git tag --annotate v{version} --message "pcm_rl {version}" && git push origin v{version}
    {Path(sys.executable)} -m twine upload {dist}/pcm_rl-{version}*
Then set __version__ to the next development version, and begin a new section in CHANGELOG.md."""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="build and try what is there, whatever its version")
    parser.add_argument("--pythons", metavar="3.10,PATH,...", help="interpreters; default: those of the classifiers")
    parser.add_argument("--dist", type=Path, default=Path("dist"), metavar="FOLDER", help="where sdist and wheel go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
