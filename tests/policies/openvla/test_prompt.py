from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("tokenizers")

from pcm_rl.policies.openvla.prompt import BOS, SPACE, STEP, Prompter


@pytest.fixture
def prompter(openvla_folder) -> Prompter:
    return Prompter(openvla_folder / "tokenizer.json")


def test_the_prompt_letter_by_letter(prompter, openvla_folder):
    """The small tokenizer has letters, so the text can be read back; a line break falls back to its byte."""
    ids = prompter.ids("Pick up the MILK")
    assert (ids[0], ids[-1]) == (BOS, SPACE)
    vocabulary = json.loads((openvla_folder / "tokenizer.json").read_text())["model"]["vocab"]
    names = {number: name for name, number in vocabulary.items()}
    text = "".join(names[i] for i in ids[1:]).replace("<0x0A>", "\n").replace("▁", " ")
    assert text == " In: What action should the robot take to pick up the milk?\nOut: "


def test_case_is_nothing_and_instructions_differ(prompter):
    assert prompter.ids("Open IT") == prompter.ids("open it") != prompter.ids("shut it")


def test_a_final_space_is_not_doubled(openvla_folder, tmp_path):
    """A tokenizer that ends prompts in 29871 by itself gets no second one."""
    content = json.loads((openvla_folder / "tokenizer.json").read_text())
    parts = content["post_processor"]["single"]
    content["post_processor"]["single"] = [*parts, {"SpecialToken": {"id": "▁", "type_id": 0}}]
    content["post_processor"]["special_tokens"]["▁"] = {"id": "▁", "ids": [SPACE], "tokens": ["▁"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    expected = Prompter(openvla_folder / "tokenizer.json").ids("go")
    assert Prompter(tmp_path / "tokenizer.json").ids("go") == expected


def test_a_batch_is_padded_behind(prompter):
    texts = ["lift it", "put the bowl on the plate", "lift it"]
    ids, length = prompter.batch(texts)
    assert ids.dtype == torch.int64 and length.tolist() == [len(prompter.ids(text)) for text in texts]
    assert ids.shape == (3, int(length.max()))
    for row, n, text in zip(ids, length, texts, strict=True):
        assert row[:n].tolist() == prompter.ids(text) and not row[n:].any()


def test_prompts_are_padded_to_few_lengths_and_never_to_none(prompter):
    frame = len(prompter.ids("a")) - 1  # letters are tokens here
    lengths = {}
    for letters in range(1, 3 * STEP):
        text = "a" * letters
        assert len(prompter.ids(text)) == frame + letters
        lengths[frame + letters] = prompter.padded_length(text)
    assert all(0 < padded - length <= STEP and padded % STEP == 0 for length, padded in lengths.items())
    texts = ["lift it", "put the bowl on the plate and the plate on the stove"]
    ids, length = prompter.batch(texts, padded=True)
    assert ids.shape == (2, prompter.padded_length(texts[1]))
    assert length.tolist() == [len(prompter.ids(text)) for text in texts]
    assert prompter.batch(texts[:1], padded=True)[0].shape == (1, prompter.padded_length(texts[0]))


def test_another_beginning_is_refused(openvla_folder, tmp_path):
    content = json.loads((openvla_folder / "tokenizer.json").read_text())
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"begin with <s> = 1, got 29871"):
        Prompter(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["", "{}", '{"model": '])
def test_a_broken_tokenizer_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged: .*; was the download complete\?"):
        Prompter(tmp_path / "tokenizer.json")
