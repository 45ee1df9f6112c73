"""constraints.txt holds one version of every dependency, for each Python that pyproject.toml names."""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PYTHONS = [python for text in PROJECT["classifiers"] for python in re.findall(r"Python :: (3\.\d+)", text)]
DEPENDENCIES = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]


def applying(requirements: Iterable[Requirement], python: str, machine: str) -> list[Requirement]:
    """Those that this Python on Linux wants."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    environment |= {"platform_system": "Linux", "os_name": "posix", "platform_machine": machine}
    return [one for one in requirements if one.marker is None or one.marker.evaluate(environment)]


def locked(python: str, machine: str) -> dict[str, Version]:
    """Versions for this Python on Linux, each named once."""
    pins = applying(PINS, python, machine)
    assert not [name for name, count in Counter(canonicalize_name(pin.name) for pin in pins).items() if count > 1]
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins}


def test_each_line_is_one_public_version():
    for pin in PINS:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, pin
        assert pin.url is None and not pin.extras and Version(specifier.version).local is None, pin


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_locked_within_its_range(python, machine):
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier
    pins = locked(python, machine)
    for requirement in applying(map(Requirement, DEPENDENCIES), python, machine):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None and version in requirement.specifier, f"{requirement}: {version}; run make lock"


def test_cuda_is_left_to_pytorchs_builds():
    assert not [pin.name for pin in PINS if re.match(r"nvidia-|cuda-|triton$", pin.name)]
