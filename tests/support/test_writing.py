from __future__ import annotations

import os
import sys

import pytest

from pcm_rl.support.writing import new_folder, partial_path, replacing


def folder_with(path, text):
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(path) as partial:
        partial.write_text("ne")
        raise OSError("disk full")
    assert path.read_text() == "old"
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


def test_a_folder_starts_empty_whatever_a_cut_write_left(tmp_path):
    folder = tmp_path / "c"
    folder_with(partial_path(folder), "half")
    with new_folder(folder) as partial:
        assert not list(partial.iterdir())
        (partial / "other").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert [path.name for path in folder.iterdir()] == ["other"]


@pytest.mark.parametrize("write", [replacing, new_folder])
def test_a_write_that_fails_leaves_nothing_behind(tmp_path, write):
    with pytest.raises(OSError, match="disk full"), write(tmp_path / "a") as partial:
        (partial / "file" if partial.is_dir() else partial).write_text("half")
        raise OSError("disk full")
    assert not list(tmp_path.iterdir()), "its place on the disk is needed"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of open files from /proc")
@pytest.mark.parametrize("write", [replacing, new_folder])
def test_content_and_names_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch, write):
    done = []
    monkeypatch.setattr(
        "pcm_rl.support.writing.os.fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}"))
    )
    rename = os.replace
    monkeypatch.setattr("pcm_rl.support.writing.os.replace", lambda *paths: (done.append("rename"), rename(*paths)))
    with write(tmp_path / "a") as partial:
        file = partial / "file" if partial.is_dir() else partial
        file.write_text("new")
    folders = [] if file == partial else [str(partial)]
    assert done == [str(file), *folders, "rename", str(tmp_path)]


def test_a_folder_that_must_be_new_takes_no_other_with_it(tmp_path):
    folder, neighbour = tmp_path / "m", folder_with(tmp_path / "m.previous", "somebody's")
    folder.mkdir()  # an empty one may be there
    with new_folder(folder) as partial:
        (partial / "file").write_text("new")
    assert (folder / "file").read_text() == "new" and neighbour.exists()
    with pytest.raises(OSError), new_folder(folder):
        pass
    assert (folder / "file").read_text() == "new"
