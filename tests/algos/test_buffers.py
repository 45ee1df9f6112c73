"""Transforms in replay buffers: which calls act, which order is right, what several writes weigh, what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    ListStorage,
    ReplayBuffer,
    ReplayBufferEnsemble,
    TensorDictReplayBuffer,
)
from torchrl.data.replay_buffers import RandomSampler, SamplerWithoutReplacement
from torchrl.envs import Compose
from torchrl.objectives.llm import MCAdvantage

from pcm_rl import KeepProbabilities, select_chunks
from pcm_rl.algos import ChunkGRPOLoss, EpisodeKeys, LabelPhases, PCMSampler, PCMSampleUnit, grpo_update
from pcm_rl.algos.weights import over_the_batch

LENGTHS = [5, 2, 7, 3, 4, 6, 8, 3]
SUCCESS = [1, 0, 1, 0, 0, 0, 1, 0]
GROUP = [4, 4, 4, 4, 7, 7, 7, 7]


@pytest.fixture
def batch(policy, make_batch):
    return make_batch(policy, LENGTHS, SUCCESS, GROUP)


def buffer(*transforms, storage=None, kind=TensorDictReplayBuffer, **options):
    storage = LazyTensorStorage(1000) if storage is None else storage  # an empty storage is false
    rb = kind(storage=storage, **{"batch_size": 8, **options})
    for transform in transforms:
        rb.append_transform(transform)
    return rb


def advantage() -> MCAdvantage:
    return MCAdvantage(grpo_size=4, prompt_key="group_id", trajectory_return="sum")


def rows_of(rows: TensorDict) -> set[tuple[int, int]]:
    return set(zip(rows["episode_id"].tolist(), rows["chunk_id"].tolist(), strict=True))


# ---------------------------------------------------------------------------------------------- which calls act


def test_a_call_acts_wherever_the_transforms_are(batch) -> None:
    bare = batch.exclude("phase")
    expected = PCMSampler(2)(LabelPhases()(bare.clone()))
    for held in (None, "compose", "buffer", "read"):
        label, sampler = LabelPhases(), PCMSampler(2)
        compose = Compose(label, sampler)
        if held in ("buffer", "read"):
            rb = buffer(transform=Compose(sampler, label))
        if held == "read":
            rb.extend(bare.clone())
            rb.sample()
            sampler.set_extra_state(PCMSampler(2).get_extra_state())
        kept = compose(bare.clone()) if held == "compose" else sampler(label(bare.clone()))
        assert rows_of(kept) == rows_of(expected)
        assert torch.equal(kept["weight"], expected["weight"])


def test_what_a_buffer_reads_stays(batch) -> None:
    read = {"sample": lambda rb: rb.sample(), "slice": lambda rb: rb[:], "row": lambda rb: rb[[3]]}
    for kind, way in itertools.product((ReplayBuffer, TensorDictReplayBuffer), read):
        rb = buffer(PCMSampler(3), LabelPhases(), EpisodeKeys(), kind=kind, prefetch=2)
        rb.extend(batch.clone())
        rows = read[way](rb)
        assert rows_of(rows) <= rows_of(rb[:])
        torch.testing.assert_close(rows["weight"], rows["weight"].clone())
        assert len(rows) == {"sample": 8, "slice": len(rb), "row": 1}[way]


def test_what_members_of_an_ensemble_read_stays(batch) -> None:
    members = [buffer(PCMSampler(3), kind=ReplayBuffer) for _ in range(2)]
    for member in members:
        for group in (4, 7):
            member.extend(batch[batch["group_id"] == group])
    rows = ReplayBufferEnsemble(*members, batch_size=16).sample()
    whole = members[0][:]
    weight = dict(zip(zip(*ids(whole), strict=True), whole["weight"].tolist(), strict=True))
    for row in rows.reshape(-1):
        assert float(row["weight"]) == pytest.approx(weight[int(row["episode_id"]), int(row["chunk_id"])])


def ids(rows: TensorDict) -> tuple[list[int], list[int]]:
    return rows["episode_id"].tolist(), rows["chunk_id"].tolist()


def test_collections_that_number_their_episodes_alike_are_not_joined(batch) -> None:
    sampler = PCMSampler(3)
    before = sampler.get_extra_state()
    for rows in (torch.cat([batch, batch]), batch[1:], batch.flip(0)):
        with pytest.raises(ValueError, match="give whole episodes"):
            sampler(rows)
    assert torch.equal(sampler.get_extra_state()["generator"], before["generator"])
    with pytest.raises(ValueError, match="give whole episodes"):
        select_chunks(torch.cat([batch, batch]), KeepProbabilities())
    with pytest.raises(ValueError, match="give whole episodes"):
        LabelPhases()(batch[:-1])
    other = batch.clone().set("episode_id", batch["episode_id"] + 8).set("group_id", batch["group_id"] + 8)
    assert len(sampler(torch.cat([batch, other]))) == 2 * len(PCMSampler(3)(batch))


def test_rows_are_chosen_once(batch) -> None:
    kept = PCMSampler(3)(batch)
    for transform in (PCMSampler(3), LabelPhases(), EpisodeKeys()):
        with pytest.raises(ValueError, match="have a 'weight'"):
            transform(kept)
    with pytest.raises(ValueError, match="have a 'weight'"):
        Compose(PCMSampler(3), LabelPhases())(batch)
    with pytest.raises(ValueError, match="PCMSampler was appended before PCMSampler"):
        buffer(PCMSampler(3), PCMSampler(2)).extend(batch)


# ------------------------------------------------------------------------------------------ the order of writing


def test_every_order_is_right_or_refused(batch) -> None:
    bare = batch.exclude("phase", "advantage", "chunk_id")
    expected = None
    right = 0
    for order in itertools.permutations(range(4)):
        parts = [PCMSampler(3), LabelPhases(), advantage(), EpisodeKeys()]
        rb = buffer(*(parts[i] for i in order))
        try:
            for episode in range(len(LENGTHS)):
                rb.extend(bare[bare["episode_id"] == episode])
        except (ValueError, KeyError) as error:
            assert order[0] != 0 or "lacks" in str(error)
            continue
        assert order[0] == 0, order
        right += 1
        stored = rb[:].select("episode_id", "chunk_id", "phase", "advantage", "weight")
        expected = stored if expected is None else expected
        assert (stored == expected).all()
    assert right == 6  # the sampler is appended first


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("needs", [advantage, LabelPhases, EpisodeKeys])
def test_a_wrong_order_names_the_right_one(batch, needs, nested) -> None:
    transforms = (needs(), Compose(PCMSampler(3), LabelPhases())) if nested else (needs(), PCMSampler(3))
    rb = buffer(transform=Compose(Compose(*transforms))) if nested else buffer(*transforms)
    with pytest.raises(ValueError, match="Append PCMSampler first, then LabelPhases, MCAdvantage, EpisodeKeys"):
        rb.extend(batch)
    assert len(rb) == 0


# ------------------------------------------------------------------------------------- weights of several writes


def gradient(policy, *parts: TensorDict) -> torch.Tensor:
    """Of the loss over rows that are read in parts."""
    policy.zero_grad()
    rows = sum(len(part) for part in parts)
    for part in parts:
        (ChunkGRPOLoss(policy, functional=False)(part)["loss_objective"] * (len(part) / rows)).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def mean_over_trajectories(policy, rows: TensorDict) -> torch.Tensor:
    """The gradient of a mean over trajectories of the mean over their kept tokens, one by one."""
    total = torch.zeros(())
    number = rows["episode_id"].unique()
    for episode in number:
        mine = rows[rows["episode_id"] == episode].exclude("trajectories_per_row")
        steps = (~mine["action_is_pad"]).sum(-1).double()
        mine["weight"] = steps / steps.mean()
        total = total + gradient(policy, mine) / len(number)
    return total


STORAGES = {
    "tensor": lambda path: LazyTensorStorage(100),
    "memmap": lambda path: LazyMemmapStorage(100, scratch_dir=path),
    "list": lambda path: ListStorage(100),
}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("selection", ["pcm", "none", "top-advantage"])
def test_several_writes_weigh_as_one_mean_over_trajectories(policy, batch, selection, storage, tmp_path) -> None:
    rb = buffer(
        PCMSampler(3, selection=selection),
        storage=STORAGES[storage](tmp_path),
        sampler=SamplerWithoutReplacement(),
        kind=ReplayBuffer,
        batch_size=5,
    )
    for episodes in ([0, 1, 2, 3], [4, 5, 6, 7]):
        rb.extend(batch[torch.isin(batch["episode_id"], torch.tensor(episodes))])
    stored = rb[:]
    if selection != "top-advantage":
        expected = mean_over_trajectories(policy, stored)
        shares = torch.zeros(8).index_add_(0, stored["episode_id"], stored["weight"]) / len(stored)
        torch.testing.assert_close(shares, torch.full((8,), 1 / 8))
    else:  # each row as in full GRPO
        full = PCMSampler(1, selection="none")(batch)
        there = torch.tensor([row in rows_of(stored) for row in zip(*ids(full), strict=True)])
        full["weight"] = torch.where(there, full["weight"], 0.0)
        expected = gradient(policy, full)
    torch.testing.assert_close(gradient(policy, stored), expected, rtol=1e-5, atol=1e-8)
    parts = list(rb)
    assert len(parts) > 2
    torch.testing.assert_close(gradient(policy, *parts), expected, rtol=1e-5, atol=1e-8)


def test_one_write_keeps_its_weights_bit_for_bit(batch) -> None:
    rb = buffer(PCMSampler(3))
    rb.extend(batch)
    assert torch.equal(rb[:]["weight"], PCMSampler(3)(batch)["weight"])
    rb.empty()
    rb.extend(batch[batch["group_id"] == 4])
    assert float(rb[:]["weight"].mean()) == pytest.approx(1.0), "what was emptied does not count"


def test_selections_that_are_concatenated_weigh_as_one(policy, batch) -> None:
    kept = torch.cat([PCMSampler(3)(batch[batch["group_id"] == group]) for group in (4, 7)])
    joint = over_the_batch(kept)
    expected = mean_over_trajectories(policy, kept)
    for rows in (kept, joint):
        torch.testing.assert_close(gradient(policy, rows), expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(gradient(policy, *joint.split(4)), expected, rtol=1e-5, atol=1e-8)
    norms = [
        grpo_update(
            ChunkGRPOLoss(policy, functional=False), torch.optim.SGD(policy.parameters(), lr=0.0), rows,
            minibatches=1, micro_rows=micro_rows,
        )["grad_norm"]
        for rows, micro_rows in itertools.product((kept, joint), (None, 3))
    ]  # fmt: skip
    assert norms == pytest.approx([float(expected.norm())] * 4, rel=1e-5)
    assert over_the_batch(joint) is joint
    assert over_the_batch(batch) is batch


# ------------------------------------------------------------------------------------------------- the sample unit


def unit_buffer(rows: int, *, unit=None, storage=None, kind=TensorDictReplayBuffer, sampler=None, batch_size=None):
    return kind(
        storage=LazyTensorStorage(rows) if storage is None else storage,
        sampler=sampler or SamplerWithoutReplacement(),
        sample_unit=unit or PCMSampleUnit(PCMSampler(3, seed=5)),
        batch_size=batch_size or rows,
    )


def test_the_sample_unit_takes_the_rows_in_any_order(batch) -> None:
    expected = PCMSampler(3, seed=5)(batch)
    for shuffle in (False, True):
        rb = unit_buffer(len(batch), sampler=SamplerWithoutReplacement(shuffle=shuffle))
        rb.extend(batch)
        sample = rb.sample()
        assert rows_of(sample) == rows_of(expected)
        assert torch.equal(sample["weight"], expected["weight"])


def test_the_sample_unit_refuses_what_is_not_the_whole_buffer(batch, tmp_path) -> None:
    rows = len(batch)
    for options, text in (
        ({"batch_size": 20}, f"got 20 rows, 20 of them distinct, of the {rows} stored"),
        ({"sampler": RandomSampler()}, f"got {rows} rows, .* of them distinct, of the {rows} stored"),
        ({"kind": ReplayBuffer}, "in a ReplayBuffer, whose samples lack the weights"),
        ({"storage": ListStorage(rows)}, "got a ListStorage"),
    ):
        rb = unit_buffer(rows, **options)
        rb.extend(batch)
        with pytest.raises(ValueError, match=text):
            rb.sample()


@pytest.mark.parametrize("given", [False, True])
def test_the_sample_units_state_is_the_buffers(batch, given) -> None:
    def make() -> tuple[TensorDictReplayBuffer, PCMSampler]:
        unit = PCMSampleUnit(PCMSampler(3, refresh_every=2))
        rb = unit_buffer(len(batch), unit=unit)
        if given:
            rb.append_transform(unit)
        rb.extend(batch)
        rb.sample()
        return rb, unit.sampler

    (first, whole), (second, resumed) = make(), make()
    for _ in range(3):
        first.sample()
    second.load_state_dict(first.state_dict())
    assert torch.equal(resumed.keep.probs, whole.keep.probs)
    assert rows_of(first.sample()) == rows_of(second.sample())


# ----------------------------------------------------------------------------------------------------------- texts


def told(batch, texts: list[str]):
    return batch.clone().set(
        "language_instruction", NonTensorStack(*(texts[i % len(texts)] for i in range(len(batch))))
    )


def test_texts_that_a_memory_map_would_lose_are_refused(batch, tmp_path) -> None:
    for transform in (PCMSampler(3), LabelPhases(), EpisodeKeys(), PCMSampleUnit(PCMSampler(3))):
        rb = buffer(transform, storage=LazyMemmapStorage(1000))
        with pytest.raises(ValueError, match="a LazyMemmapStorage keeps the first row's text"):
            rb.extend(told(batch, ["pick", "place"]))
        rb.extend(told(batch, ["pick"]))
        rb.empty()
        with pytest.raises(ValueError, match="'language_instruction' differs"):
            rb.extend(told(batch, ["place"]))
    for storage in (LazyTensorStorage(1000), ListStorage(1000)):
        rb = buffer(PCMSampler(30), storage=storage)
        rb.extend(told(batch, ["pick", "place"]))
        texts = rb[:]["language_instruction"]
        assert list(texts) == ["pick" if i % 2 == 0 else "place" for i in range(len(batch))]


def test_a_sample_unit_does_not_trust_texts_that_it_has_not_seen(batch) -> None:
    rb = unit_buffer(len(batch), storage=LazyMemmapStorage(len(batch)))
    rb.extend(told(batch, ["pick", "place"]))
    with pytest.raises(ValueError, match="the storage holds texts"):
        rb.sample()
    unit = PCMSampleUnit(PCMSampler(3))
    rb = unit_buffer(len(batch), unit=unit, storage=LazyMemmapStorage(len(batch))).append_transform(unit)
    rb.extend(told(batch, ["pick"]))
    assert set(rb.sample()["language_instruction"]) == {"pick"}
