"""What is written is what was trained: for transformers, for peft, and for this package."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from pcm_rl.config import load_config
from pcm_rl.config.files import save_config
from pcm_rl.episodes import CHUNK, DENOISED
from pcm_rl.evals.export import export_run
from pcm_rl.training.checkpoint import save_policy

LORA = {"train": "lora", "lora": {"rank": 2, "alpha": 4, "targets": "all"}}


@pytest.fixture(params=["expert", "lora"])
def trained(request, make_pi0):
    policy = make_pi0(cameras=2, **(LORA if request.param == "lora" else {}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        policy.state_mean += 0.5  # as after a start from other statistics
    return policy


def test_an_exported_policy_is_the_same_policy(trained, make_pi0, record_pi0, tmp_path):
    rows = record_pi0(trained)
    folder = trained.export(tmp_path / "whole")
    other = make_pi0(folder, cameras=2)
    assert other.statistics == trained.statistics
    again = record_pi0(other)
    torch.testing.assert_close(again[DENOISED], rows[DENOISED], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(record_pi0(make_pi0(cameras=2))[DENOISED], rows[DENOISED], atol=1e-2)
    assert torch.equal(record_pi0(trained)[CHUNK], rows[CHUNK])  # exporting changed nothing
    with pytest.raises(FileExistsError, match="not empty"):
        trained.export(folder)


def test_transformers_alone_reads_it(trained, record_pi0, tmp_path):
    from transformers import AutoTokenizer, PI0ForConditionalGeneration

    folder = trained.export(tmp_path / "whole")
    model, report = PI0ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids, real = trained.prompter.batch(["go"])
    text = f"{'<image>' * 8}{tokenizer.bos_token}go\n"
    assert tokenizer(text)["input_ids"] == ids[real].tolist()
    rows = record_pi0(trained, ["go"])
    noise = torch.randn(1, 6, 32)
    inputs = dict(
        state=trained._state(rows), input_ids=ids, attention_mask=real.long(), pixel_values=trained._pixels(rows),
        pixel_attention_mask=torch.ones(1, 2, dtype=torch.bool), noise=noise, timestep=torch.ones(1),
    )  # fmt: skip
    with torch.no_grad():
        expected = trained._velocity(trained._prefix(rows), trained._state(rows))(noise, torch.ones(1))
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-3, atol=1e-4)


def test_the_processors_class_reads_it(trained, tmp_path):
    pytest.importorskip("torchvision")
    from transformers import PI0Processor

    processor = PI0Processor.from_pretrained(trained.export(tmp_path / "whole"))
    assert processor.state_mean == trained.state_mean.tolist() and processor.image_seq_length == 4


def test_peft_reads_the_adapters(make_pi0, record_pi0, tmp_path):
    from peft import PeftModel

    policy, plain = make_pi0(**LORA), make_pi0()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05
    folder = policy.export(tmp_path / "adapters", adapters=True)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".md"}
    rows = record_pi0(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it warns of adapters that it does not find
        plain.model = PeftModel.from_pretrained(plain.model, folder).merge_and_unload()
    torch.testing.assert_close(record_pi0(plain)[DENOISED], rows[DENOISED], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"no adapters to save; they need policy\.pi0\.train=lora"):
        make_pi0().export(tmp_path / "none", adapters=True)
    assert not (tmp_path / "none").exists()


def test_a_run_is_exported_without_its_environment(trained, make_pi0, record_pi0, pi0_folder, tmp_path):
    options = ["policy.family=pi0", f"policy.pi0.checkpoint={pi0_folder}"]
    if trained.adapters is not None:
        options += ["policy.pi0.train=lora", "policy.pi0.lora={rank: 2, alpha: 4, targets: all}"]
    save_config(load_config(None, options), tmp_path / "config.yaml")
    save_policy(trained, tmp_path / "policy.safetensors", {"chunk": "4 7"})
    folder = export_run(tmp_path, tmp_path / "exported")
    assert json.loads((folder / "processor_config.json").read_text())["state_mean"] == trained.state_mean.tolist()
    expected = record_pi0(trained)[DENOISED]
    torch.testing.assert_close(record_pi0(make_pi0(folder, cameras=2))[DENOISED], expected, rtol=1e-3, atol=1e-4)
