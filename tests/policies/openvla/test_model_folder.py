"""Weights as they are stored, and every folder that must be refused, with what it says."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pcm_rl.policies.openvla import CheckpointError, load_model, open_checkpoint
from pcm_rl.policies.openvla.keys import HEAD, is_unused, model_key
from pcm_rl.policies.openvla.model_folder import NORMALISATION

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
SCALE = "vision_backbone.featurizer.blocks.0.ls1.scale_factor"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for shard in sorted(folder.glob("*.safetensors")) for key, value in load_file(shard).items()}


def rewrite(folder, change) -> None:
    """Put ``change(tensors)`` in the place of the weights, as one file."""
    tensors = weights_of(folder.path)
    for path in (*folder.path.glob("*.safetensors"), folder.path / INDEX):
        path.unlink()
    save_file(change(tensors), folder.path / "model.safetensors")


def load(folder: Path, dtype=torch.float32):
    return load_model(open_checkpoint(folder), 14, dtype=dtype)


def refused(folder: Path, message: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value), "the message names the folder"


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def trap(tmp_path):
    """Bytes that must not be unpickled, and what shows that they were."""
    mark = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists(), "the trap works"
    mark.rmdir()
    yield pickle.dumps(Trap(mark))
    assert not mark.exists(), "a pickle was opened"


# --- what is read


def test_weights_are_those_of_the_files(openvla_folder, openvla_sizes):
    tensors, loaded = weights_of(openvla_folder), load(openvla_folder).state_dict()
    used = {key: model_key(key) for key in tensors if not is_unused(key, openvla_sizes)}
    assert set(loaded) == set(used.values())
    for key, name in used.items():
        expected = tensors[key][31744:32000] if key == HEAD else tensors[key]
        assert torch.equal(loaded[name], expected), key
    head = loaded[HEAD]
    assert head.shape == (256, 32) and head.untyped_storage().nbytes() == 256 * 32 * 4, "the other rows are let go"


def test_nothing_is_trainable_and_the_type_is_the_asked(openvla_folder):
    model = load(openvla_folder, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_one_file_and_timms_own_names_load_equal(copied, openvla_folder):
    rewrite(copied, lambda tensors: {key.replace("scale_factor", "gamma"): value for key, value in tensors.items()})
    assert any(key.endswith("ls1.gamma") for key in weights_of(copied.path))
    expected = load(openvla_folder).state_dict()
    found = load(copied.path).state_dict()
    assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in found)


def test_a_layer_scale_under_both_names_is_refused(copied):
    rewrite(copied, lambda tensors: {**tensors, SCALE.replace("scale_factor", "gamma"): tensors[SCALE].clone()})
    with pytest.raises(CheckpointError, match="there twice"):
        load(copied.path)


def test_the_preprocessors_normalisation_wins(copied, openvla_folder):
    (usual, siglip) = NORMALISATION
    assert open_checkpoint(openvla_folder).mean == usual[0] + siglip[0]
    assert open_checkpoint(openvla_folder).std == usual[1] + siglip[1]
    own = [{"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}, {"mean": [0.4, 0.5, 0.6], "std": [4, 5, 6]}]
    copied.change("preprocessor_config.json", tvf_normalize_params=own)
    checkpoint = open_checkpoint(copied.path)
    assert checkpoint.mean == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6) and checkpoint.std == (1, 2, 3, 4, 5, 6)
    copied.change("preprocessor_config.json", tvf_normalize_params=own[:1])
    refused(copied.path, "two normalisations of three channels")
    (copied.path / "preprocessor_config.json").unlink()
    assert open_checkpoint(copied.path).mean == usual[0] + siglip[0]


def test_a_dataset_by_its_name(copied):
    checkpoint = open_checkpoint(copied.path)
    for name in (None, "libero_object", "libero_object_no_noops"):
        assert checkpoint.dataset(name) == "libero_object_no_noops"
    with pytest.raises(CheckpointError, match=r"one of libero_object_no_noops .*got 'libero_goal'"):
        checkpoint.dataset("libero_goal")
    copied.change("dataset_statistics.json", libero_goal_no_noops={})
    with pytest.raises(CheckpointError, match=r"one of libero_goal_no_noops, libero_object_no_noops .*got None"):
        open_checkpoint(copied.path).dataset(None)


# --- what is refused


def test_no_folder(tmp_path):
    refused(tmp_path / "none", "no checkpoint folder at", FileNotFoundError)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "expected config.json, which is missing"),
        (INDEX, "expected model.safetensors.index.json or model.safetensors, found neither"),
        (SECOND, f"names {SECOND}, which is missing; was the download complete"),
        ("dataset_statistics.json", "expected dataset_statistics.json, which is missing"),
        ("tokenizer.json", r"expected tokenizer.json; transformers writes it: AutoTokenizer"),
    ],
)
def test_a_missing_file(copied, name, message):
    (copied.path / name).unlink()
    refused(copied.path, message)


def test_a_missing_and_an_unknown_tensor(copied):
    index = copied.read(INDEX)
    shard = index["weight_map"].pop(SCALE)
    copied.write(INDEX, index)
    refused(copied.path, rf"1 of \d+ tensors are missing, such as {SCALE}; is a shard or {INDEX} incomplete")
    index["weight_map"] |= {SCALE: shard, "language_model.model.extra.weight": shard}
    copied.write(INDEX, index)
    refused(copied.path, "1 tensors have no place in an OpenVLA of these sizes, such as language_model.model.extra")


def test_a_tensor_that_only_the_index_has(copied):
    shard = copied.path / copied.read(INDEX)["weight_map"][SCALE]
    rest = {key: value for key, value in load_file(shard).items() if key != SCALE}
    save_file(rest, shard)
    refused(copied.path, f"{shard.name}.*was the download complete")


def test_a_shard_cut_short(copied):
    shard = copied.path / FIRST
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(copied.path, f"{FIRST}.*was the download complete")


@pytest.mark.parametrize("name", ["config.json", INDEX, "dataset_statistics.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["", "{", '{"a": ', "[1, 2]", "5", "\\xff"])
def test_a_broken_file_of_json_is_named(copied, name, text):
    (copied.path / name).write_bytes(text.encode().replace(b"\\xff", b"\xff"))
    refused(copied.path, f"{name}( is damaged|: expected)")


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("config.json", {"text_config": 5}), ("config.json", {"text_config": {"hidden_size": "wide"}}),
        ("config.json", {"image_sizes": 224}), ("config.json", {"text_config": {"hidden_size": 0}}),
        (INDEX, {"weight_map": None}), (INDEX, {"weight_map": ["a"]}),
        ("preprocessor_config.json", {"tvf_normalize_params": [{"mean": [1]}]}),
        ("preprocessor_config.json", {"tvf_normalize_params": 3}),
    ],
)  # fmt: skip
def test_entries_of_another_kind_are_refused(copied, name, entries):
    copied.change(name, **entries)
    refused(copied.path, r"config\.json|expected|are missing")


@pytest.mark.parametrize(
    "changed",
    [{"q01": [0.0]}, {"q99": None}, {"mask": [True]}, {"q01": [float("nan")] * 7}, {"q01": ["a"] * 7}, "all of it"],
)
def test_quantiles_that_do_not_fit_are_refused(copied, changed):
    statistics = copied.read("dataset_statistics.json")
    (name,) = statistics
    statistics[name] = [] if changed == "all of it" else {"action": {**statistics[name]["action"], **changed}}
    copied.write("dataset_statistics.json", statistics)
    with pytest.raises(
        CheckpointError, match=rf"dataset_statistics\.json: expected quantiles of {name}'s actions, got"
    ):
        open_checkpoint(copied.path).dataset(None)


def test_tensors_of_another_shape(copied):
    config = copied.read("config.json")
    text = config["text_config"]
    copied.write("config.json", {**config, "text_config": {**text, "intermediate_size": 72}})
    refused(copied.path, r"mlp.\w+_proj.weight of shape \(\d+, \d+\) by config.json, got \(.*\); do the two belong")
    copied.write("config.json", {**config, "text_config": {**text, "vocab_size": 32128}})
    refused(copied.path, r"weight of shape \(32128, 32\) by config.json, got \(32064, 32\)")


def test_the_official_release_with_a_regression_head(copied, trap):
    (copied.path / "action_head--150000_checkpoint.pt").write_bytes(trap)
    refused(copied.path, r"emits action tokens, got one with a regression head \(action_head--150000_checkpoint.pt\)")


def test_a_regression_head_among_the_weights(copied):
    rewrite(copied, lambda tensors: tensors | {"action_head.model.fc1.weight": torch.zeros(2, 2)})
    refused(copied.path, r"got one with a regression head \(keys under action_head.\)")


def test_pickled_weights_are_named_and_never_opened(copied, trap):
    (copied.path / "pytorch_model.bin").write_bytes(trap)
    load(copied.path)  # beside good safetensors it is not even looked at
    for path in (*copied.path.glob("*.safetensors"), copied.path / INDEX):
        path.unlink()
    refused(copied.path, r"got pickled weights \(pytorch_model.bin\), which can run any code and are never opened")


def test_another_model_with_code_of_its_own(copied):
    copied.change("config.json", model_type="prismatic", auto_map={"AutoModel": "modeling_prismatic.X"})
    with pytest.raises(CheckpointError, match=r"got 'prismatic'.* auto_map, which is never run"):
        open_checkpoint(copied.path)


def test_code_in_the_folder_is_ignored(copied, tmp_path, monkeypatch):
    mark = tmp_path / "ran"
    for name in ("modeling_prismatic.py", "configuration_prismatic.py", "conftest.py", "__init__.py"):
        (copied.path / name).write_text(f"import os\nos.mkdir({str(mark)!r})\nraise RuntimeError('imported')\n")
    copied.change("config.json", auto_map={"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"})
    monkeypatch.chdir(copied.path)
    load(copied.path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "pytorch_model.bin", "sub/x.safetensors"])
def test_an_index_that_leads_elsewhere(copied, name, tmp_path):
    save_file({SCALE: torch.zeros(32)}, tmp_path / "x.safetensors")  # it is there, and must not be read
    index = copied.read(INDEX)
    index["weight_map"][SCALE] = name
    copied.write(INDEX, index)
    refused(copied.path, rf"expected names of safetensors beside it, got '{re.escape(name)}'")
