"""THIRD_PARTY_LICENCES.md has a line for every direct dependency."""

from __future__ import annotations

import licences
import pytest


def test_every_direct_dependency_has_its_line():
    rows = licences.listed(licences.PAGE.read_text())
    assert licences.missing(rows, licences.direct()) == [], "run make licences"


def test_a_new_dependency_and_an_extra_that_is_gone_are_named():
    rows = {"torch": {"always"}, "mujoco": {"libero"}}
    assert licences.missing(rows, {"always": {"torch"}, "libero": {"mujoco", "torch"}}) == []
    new, gone = licences.missing(rows, {"always": {"torch"}, "video": {"mujoco"}})
    assert "mujoco (for video) has no line" in new and "libero" in gone


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"license_expression": "MIT", "classifier": ["License :: OSI Approved :: BSD License"]}, "MIT"),
        ({"license": "Copyright\nand so on", "classifier": ["License :: OSI Approved :: BSD License"]}, "BSD License"),
        ({"license": "Apache 2.0", "classifier": ["License :: OSI Approved"]}, "Apache 2.0"),
        ({"license": "UNKNOWN", "name": "robosuite"}, "MIT"),
        ({"name": "somebody"}, "not in its metadata"),
    ],
)
def test_licence_of_metadata(metadata, expected):
    assert licences.licence(metadata) == expected


def test_copyleft_is_named_at_the_top():
    extras = {"always": {"torch": "BSD"}, "libero": {"torch": "BSD", "easydict": "LGPL-3.0-only"}}
    extras["dev"] = {"codespell": "GPL-2.0-only", "imageio-ffmpeg": "BSD", "opencv-python": "Apache 2.0"}
    text = licences.page(extras)
    assert "metadata: `easydict` (LGPL-3.0-only; for libero). The developers' tools add `codespell` (GPL" in text
    assert licences.listed(text)["torch"] == {"always"} and licences.listed(text)["easydict"] == {"libero"}
