"""What `make release` holds: sdist and wheel have what they should, and a release refuses what is not ready."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import release

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Sdist, the wheel made from it, and the wheel made from the source tree."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("release")
    for folder, kind in (("dist", []), ("tree", ["--wheel"])):
        command = [sys.executable, "-m", "build", *kind, "--no-isolation", "--outdir", str(out / folder), str(ROOT)]
        subprocess.run(command, check=True, capture_output=True)
    return *out.glob("dist/*.tar.gz"), *out.glob("dist/*.whl"), *out.glob("tree/*.whl")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the list of files is git's")
def test_the_sdist_is_the_repository_and_the_wheel_is_the_package(built):
    assert release.differences(*built) == []


def test_files_that_are_missing_or_too_many_are_named(monkeypatch, built):
    sdist, wheel, _ = built
    tracked = (release.names_in_sdist(sdist) - {"PKG-INFO", "configs/reach.yaml"}) | {"pcm_rl/forgotten.py"}
    monkeypatch.setattr(release, "_git", lambda *arguments: "\n".join(tracked))
    assert release.differences(sdist, wheel, wheel) == [
        "the sdist lacks pcm_rl/forgotten.py",
        "the sdist alone has configs/reach.yaml",
        "the wheel lacks pcm_rl/forgotten.py",
        "the wheel should not have pcm_rl/configs/reach.yaml",
    ]


def test_what_is_not_ready_is_refused_at_once():
    ready = "# Changelog\n\n## 0.2.0 (2026-05-01)\n\n- a\n\n## 0.1.0\n"
    assert release.unready("0.2.0", ready, "", False) == release.unready("0.1.0", "## 0.1.0\n", "", False) == []
    lacks = release.unready("0.3.0.dev0", ready, " M README.md", True)
    words = ("development version", "begins with the section '0.2.0 (2026-05-01)'", "has changes", "a tag v0.3.0.dev0")
    assert len(lacks) == len(words) and all(word in text for word, text in zip(words, lacks, strict=True))
    assert "'0.2.0 (unreleased)'" in release.unready("0.2.0", "## 0.2.0 (unreleased)\n", "", False)[0]
    assert "'nothing'" in release.unready("0.2.0", "# Changelog\n", "", False)[0]


def test_a_missing_interpreter_is_named(monkeypatch, tmp_path):
    hint = tmp_path / "python3.9"
    hint.write_text("#!/bin/sh\nexit 127\n")
    hint.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(release.Refused, match=r"python3\.9, python3\.99 not found"):
        release.found(f"3.9,{sys.executable},3.99")
    assert list(release.found(sys.executable).values()) == [sys.executable]


def test_the_version_stands_in_one_place():
    import pcm_rl

    assert release.version_of(ROOT) == pcm_rl.__version__
    for name in ("CITATION.cff", "pyproject.toml", "README.md"):
        assert not re.search(rf"^version\b|{re.escape(pcm_rl.__version__)}", (ROOT / name).read_text(), re.MULTILINE)


def test_the_pythons_are_those_of_the_workflow():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    jobs = re.findall(r"python-version: (?:\[([^\]]+)\]|\|\n((?: +3\.\d+\n)+))", workflow)
    assert [re.findall(r"3\.\d+", "".join(job)) for job in jobs] == 2 * [release.classified(ROOT)]
