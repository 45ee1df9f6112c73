"""Prompts, images and states are those that transformers' PI0Processor makes."""

from __future__ import annotations

import pytest
import torch

from pcm_rl.episodes import STATE

TEXTS = ["lift it", "put the bowl on the plate", "go", "<loc0001> what is this? \n\n été"]


class Images:
    """In the place of PI0ImageProcessor, which needs torchvision: images of the right size are only scaled."""

    image_seq_length = 4

    def __call__(self, images, **_):
        return {"pixel_values": torch.stack([(image / 255.0 - 0.5) / 0.5 for image in images])}


def processors(folder, monkeypatch):
    """The real one where torchvision is installed, and else with a stand-in for images."""
    from transformers import AutoTokenizer, PI0Processor
    from transformers.processing_utils import ProcessorMixin

    from pcm_rl.policies.pi0 import open_checkpoint

    try:
        import torchvision  # noqa: F401
    except Exception:
        monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
        statistics = open_checkpoint(folder).statistics.as_dict()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return PI0Processor(Images(), tokenizer, chunk_size=6, **statistics)
    return PI0Processor.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("cameras", [1, 2])
def test_inputs_are_those_of_the_processor(make_pi0, record_pi0, pi0_folder, monkeypatch, cameras):
    processor = processors(pi0_folder, monkeypatch)
    policy = make_pi0(cameras=cameras)
    rows = record_pi0(policy, TEXTS)
    images = [[rows[key][i] for key in policy.image_keys] for i in range(4)]
    expected = processor(images=images, text=TEXTS, state=rows[STATE])
    ids, real = policy.prompter.batch(TEXTS)
    width = expected["input_ids"].shape[1]
    assert width == 48 < ids.shape[1]  # the rest is padding, which the processor leaves out
    assert torch.equal(ids[:, :width], expected["input_ids"]) and not ids[:, width:].any()
    assert torch.equal(real[:, :width].long(), expected["attention_mask"]) and not real[:, width:].any()
    torch.testing.assert_close(policy._pixels(rows), expected["pixel_values"], rtol=0, atol=1e-6)
    assert expected["pixel_attention_mask"].all()
    torch.testing.assert_close(policy._state(rows), expected["state"], rtol=0, atol=0)


def test_actions_are_normalised_as_the_processor_does(make_pi0, pi0_folder, monkeypatch):
    processor, policy = processors(pi0_folder, monkeypatch), make_pi0()
    actions = torch.randn(3, 4, 7)
    torch.testing.assert_close(policy.unnormalised(processor.normalize(actions, "actions")), actions)


def test_padding_changes_no_position(pi0, record_pi0):
    rows = record_pi0(pi0)
    ids, real = pi0.prompter.batch(["go"] * 4)
    more = torch.zeros(4, 9, dtype=torch.int64)
    from pcm_rl.policies.pi0.prefix import read_prefix

    with torch.no_grad():
        pixels = pi0._pixels(rows)
        short = read_prefix(pi0.model, ids, real, pixels)
        long = read_prefix(pi0.model, torch.cat([ids, more], 1), torch.cat([real, more.bool()], 1), pixels)
    torch.testing.assert_close(long.mean, short.mean, rtol=1e-5, atol=1e-6)
    number = int(real[0].sum())
    for layer, (keys, values) in short.layers.items():
        for found, expected in zip(long.layers[layer], (keys, values), strict=True):
            torch.testing.assert_close(found[:, :, :number], expected[:, :, :number], rtol=1e-5, atol=1e-5)
