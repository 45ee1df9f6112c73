"""Files of demonstrations that are cut, or cannot be written."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from pcm_rl.config import ConfigError
from pcm_rl.rollouts.dataset import begin_or_continue, load_demonstrations, save_demonstrations
from pcm_rl.support import tensors


def test_a_cut_dataset_is_refused_with_its_name(tmp_path):
    path = tmp_path / "demos.safetensors"
    save_demonstrations(TensorDict({"x": torch.arange(99)}, batch_size=[99]), path, {})
    whole = path.read_bytes()
    assert torch.equal(load_demonstrations(path)["x"], torch.arange(99))
    for kept in (0, 5, 20, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ConfigError, match=r"demos\.safetensors are damaged: .*; delete the file and record again"):
            load_demonstrations(path)


def test_cut_settings_of_a_recording_are_refused(tmp_path):
    begin_or_continue(tmp_path / "parts", {"env": "a"})
    begin_or_continue(tmp_path / "parts", {"env": "a"})
    for text in ("", '{"env": ', "[]", "5"):
        (tmp_path / "parts" / "settings.json").write_text(text)
        with pytest.raises(ConfigError, match=r"settings\.json is damaged: .*delete .*parts, and record again"):
            begin_or_continue(tmp_path / "parts", {"env": "a"})


def test_a_full_disk_is_an_error_of_the_operating_system(tmp_path, monkeypatch):
    def full(*_):
        raise tensors.SafetensorError("I/O error: No space left on device (os error 28)")

    path = tmp_path / "demos.safetensors"
    save_demonstrations(TensorDict({"x": torch.arange(9)}, batch_size=[9]), path, {})
    before = path.read_bytes()
    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*demos\.safetensors.*: .*No space left"):
        save_demonstrations(TensorDict({"x": torch.arange(8)}, batch_size=[8]), path, {})
    assert path.read_bytes() == before
