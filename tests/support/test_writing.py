from __future__ import annotations

import pytest

from pcm_rl.support.writing import partial_path, replacing, replacing_folder


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
    folder, previous = folder_with(tmp_path / "c", "old"), folder_with(tmp_path / "c.previous", "older")
    folder_with(partial_path(folder), "half")
    with replacing_folder(folder, previous=previous) as partial:
        assert not list(partial.iterdir())
        (partial / "other").touch()
        assert (folder / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert [path.name for path in folder.iterdir()] == ["other"]


def test_the_only_complete_folder_is_not_deleted_before_the_next_one_has_its_name(tmp_path, monkeypatch):
    folder, previous = tmp_path / "c", folder_with(tmp_path / "c.previous", "old")  # cut between the two moves

    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pcm_rl.support.writing.os.replace", cut)
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder, previous=previous):
        pass
    assert (previous / "file").read_text() == "old"


def test_a_folder_that_must_be_new_takes_no_other_with_it(tmp_path):
    folder, neighbour = tmp_path / "m", folder_with(tmp_path / "m.previous", "somebody's")
    folder.mkdir()  # an empty one may be there
    with replacing_folder(folder) as partial:
        (partial / "file").write_text("new")
    assert (folder / "file").read_text() == "new" and neighbour.exists()
    with pytest.raises(OSError), replacing_folder(folder):
        pass
    assert (folder / "file").read_text() == "new"
