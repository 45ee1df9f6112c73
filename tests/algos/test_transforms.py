from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import SamplerWithoutReplacement
from torchrl.objectives.llm import MCAdvantage
from torchrl.objectives.value import GAE

from pcm_rl import Phase, group_advantage
from pcm_rl.algos import ChunkGRPOLoss, EpisodeKeys, LabelPhases, PCMSampler, PCMSampleUnit
from pcm_rl.algos.critic import chunk_advantage
from pcm_rl.episodes import pad_episodes

LENGTHS = [5, 2, 7, 3, 4, 6, 8, 3]
SUCCESS = [1, 0, 1, 0, 0, 0, 1, 0]
GROUP = [4, 4, 4, 4, 7, 7, 7, 7]


def rows_of(batch: TensorDict) -> set[tuple[int, int]]:
    return set(zip(batch["episode_id"].tolist(), batch["chunk_id"].tolist(), strict=True))


def buffer(*transforms, storage=None, **options) -> TensorDictReplayBuffer:
    rb = TensorDictReplayBuffer(storage=storage or LazyTensorStorage(1000), batch_size=8, **options)
    for transform in transforms:
        rb.append_transform(transform)
    return rb


def advantage(**options) -> MCAdvantage:
    return MCAdvantage(grpo_size=4, prompt_key="group_id", trajectory_return="sum", **options)


def test_call_keeps_min_of_budget_and_length(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    sampler = PCMSampler(4)
    kept = sampler(batch)
    counts = torch.bincount(kept["episode_id"])
    assert counts.tolist() == [min(4, n) for n in LENGTHS]
    assert float(kept["weight"].mean()) == pytest.approx(1.0)
    assert rows_of(kept) <= rows_of(batch)
    assert sampler.stats["chunks_kept"] == sum(counts)
    assert sampler.stats["chunks_valid"] == sum(LENGTHS)
    per_phase = [sampler.stats[f"kept/{phase.label}"] for phase in Phase]
    assert sum(per_phase) == pytest.approx(int(counts.sum()) / len(LENGTHS))


def gradient(policy, rows: TensorDict) -> torch.Tensor:
    policy.zero_grad()
    ChunkGRPOLoss(policy, functional=False)(rows)["loss_objective"].backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_top_advantage_has_the_gradient_of_a_part_of_full_grpo(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    sampler = PCMSampler(2, selection="top-advantage")
    kept = sampler(batch)
    assert len(kept) == sum(min(2, n) for n in LENGTHS)
    assert sampler.stats["chunks_kept"] == len(kept)
    full = PCMSampler(2, selection="none")(batch)
    there = torch.tensor([row in rows_of(kept) for row in zip(*_ids(full), strict=True)])
    full["weight"] = torch.where(there, full["weight"], 0.0)
    torch.testing.assert_close(gradient(policy, kept), gradient(policy, full), rtol=1e-5, atol=1e-8)


def test_top_advantage_goes_by_the_advantage_of_the_batch(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    largest = torch.tensor([3, 11, 30])
    batch["advantage"] = torch.full_like(batch["advantage"], 1e-3)
    batch["advantage"][largest] = torch.tensor([5.0, -6.0, 7.0], dtype=torch.float64)
    for column in (batch["advantage"], batch["advantage"].unsqueeze(-1)):  # TorchRL's has a last dimension of 1
        kept = PCMSampler(1, selection="top-advantage")(batch.clone().set("advantage", column))
        assert {row for row in zip(*_ids(batch[largest]), strict=True)} <= rows_of(kept)
        assert len(kept) == len(LENGTHS)


def _ids(batch: TensorDict) -> tuple[list[int], list[int]]:
    return batch["episode_id"].tolist(), batch["chunk_id"].tolist()


def test_write_path_with_mc_advantage(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    phase, expected = batch.pop("phase"), batch.pop("advantage")
    sampler = PCMSampler(3)
    rb = buffer(sampler, advantage(), LabelPhases())  # inverse transforms run last to first
    rb.extend(batch)
    stored = rb[:]
    assert torch.bincount(stored["episode_id"]).tolist() == [min(3, n) for n in LENGTHS]
    for row in stored:
        here = (batch["episode_id"] == row["episode_id"]) & (batch["chunk_id"] == row["chunk_id"])
        assert int(row["phase"]) == int(phase[here])
        assert float(row["advantage"]) == pytest.approx(float(expected[here]), abs=1e-5)

    direct = PCMSampler(3)
    kept = direct(batch.clone().set("phase", phase))
    assert rows_of(kept) == rows_of(stored)
    sample = rb.sample()  # reading back trims nothing
    assert len(sample) == 8
    assert rows_of(sample) <= rows_of(stored)


def test_incomplete_and_signalless_groups_pass_as_none(policy, make_batch):
    batch = make_batch(policy, LENGTHS, [1] * 4 + [1, 0, 1, 0], GROUP)
    rb = buffer(PCMSampler(3), advantage(keep_return_bounds=(0.1, 0.9)))
    rb.extend(batch[batch["episode_id"] < 4])  # a group of successes: dropped
    assert len(rb) == 0
    rb.extend(batch[(batch["episode_id"] >= 4) & (batch["episode_id"] < 7)])  # waits for its fourth trajectory
    assert len(rb) == 0
    rb.extend(batch[batch["episode_id"] == 7])
    assert len(rb) == sum(min(3, n) for n in LENGTHS[4:])


def test_advantage_agrees_with_mc_advantage(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    rb = buffer(advantage())
    rb.extend(batch.exclude("advantage"))
    first = rb[:][rb[:]["chunk_id"] == 0]
    ours = group_advantage(torch.tensor(SUCCESS), torch.tensor(GROUP))
    for row in first:
        assert float(row["advantage"]) == pytest.approx(float(ours[row["episode_id"]]), abs=1e-5)


def test_sample_unit_reads_kept_rows_of_a_memory_map(policy, make_batch, tmp_path):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    batch["observation", "image"] = torch.randint(0, 255, (len(batch), 3, 8, 8), dtype=torch.uint8)
    sampler = PCMSampler(3, seed=5)
    rb = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(len(batch), scratch_dir=tmp_path),
        sampler=SamplerWithoutReplacement(shuffle=False),
        sample_unit=PCMSampleUnit(sampler),
        batch_size=len(batch),
    )
    rb.extend(batch)
    sample = rb.sample()
    expected = PCMSampler(3, seed=5)(batch)
    assert rows_of(sample) == rows_of(expected)
    torch.testing.assert_close(sample["observation", "image"], expected["observation", "image"])
    torch.testing.assert_close(sample["weight"], expected["weight"])


def test_state_survives_a_buffers_state_dict(policy, make_batch):
    batches = [make_batch(policy, LENGTHS, SUCCESS, GROUP, seed=seed) for seed in range(9)]
    whole = PCMSampler(3, refresh_every=2)
    expected = [rows_of(whole(batch)) for batch in batches]

    first = buffer(PCMSampler(3, refresh_every=2))
    for batch in batches[:4]:
        first.extend(batch)
    second = PCMSampler(3, refresh_every=2, seed=99)
    rb = buffer(second)
    rb.extend(batches[0])  # storages load into storages of the same kind
    rb.load_state_dict(first.state_dict())
    second_alone = PCMSampler(3, refresh_every=2)
    second_alone.set_extra_state(second.get_extra_state())
    assert [rows_of(second_alone(batch)) for batch in batches[4:]] == expected[4:]
    torch.testing.assert_close(second_alone.keep.probs, whole.keep.probs, rtol=0, atol=0)


def test_padding_kept_keeps_every_slot(policy, make_batch):
    padded = pad_episodes(make_batch(policy, LENGTHS, SUCCESS, GROUP), 10)
    kept = PCMSampler(4, selection="none", padding="keep")(padded)
    assert len(kept) == 10 * len(LENGTHS)
    assert float(kept["weight"][kept["action_is_pad"].all(-1)].abs().max()) == 0.0
    assert float(kept["weight"].mean()) == pytest.approx(1.0)


def test_empty_batch_and_missing_keys(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    assert PCMSampler()._inv_call(batch[:0]) is None
    assert len(PCMSampler()(batch[:0])) == 0
    with pytest.raises(KeyError, match="phase"):
        PCMSampler()(batch.exclude("phase"))
    with pytest.raises(ValueError, match=r"rows \[M\]"):
        PCMSampler()(batch.unsqueeze(0))


@pytest.mark.parametrize(
    ("options", "text"),
    [({"budget": 0}, "budget"), ({"selection": "best"}, "unknown selection"), ({"padding": "zero"}, "unknown padding")],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        PCMSampler(**options)


def test_given_to_a_buffer_at_construction(policy, make_batch):
    rb = TensorDictReplayBuffer(storage=LazyTensorStorage(1000), batch_size=8, transform=PCMSampler(3))
    rb.extend(make_batch(policy, LENGTHS, SUCCESS, GROUP))
    assert len(rb) == sum(min(3, n) for n in LENGTHS)
    assert len(rb.sample()) == 8


def test_top_advantage_goes_by_torchrls_gae(policy, make_batch):
    """Chances in front of the chunks as ``state_value``: TorchRL's advantage is the one that our critic would give."""
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    value = torch.rand(len(batch), 1, generator=torch.Generator().manual_seed(0)).double()
    batch["state_value"] = value
    batch["next", "state_value"] = torch.cat([value[1:], value[:1]])
    batch["next", "terminated"] = batch["next", "done"]
    GAE(gamma=1.0, lmbda=0.8, value_network=None)(batch)
    expected = chunk_advantage(value.squeeze(-1), batch["success"], batch["episode_id"], 0.8)
    torch.testing.assert_close(batch["advantage"].squeeze(-1), expected, rtol=0, atol=1e-6)

    kept = PCMSampler(1, selection="top-advantage")(batch)
    steps = (~batch["action_is_pad"]).sum(-1)
    of_episode = torch.zeros(len(LENGTHS), dtype=torch.int64).index_add_(0, batch["episode_id"], steps)
    size = expected.abs() * steps / of_episode[batch["episode_id"]]
    best = size.argsort(descending=True)[: len(LENGTHS)]
    assert rows_of(kept) == rows_of(batch[best])


def test_locked_and_memory_mapped_rows_are_labelled(policy, make_batch, tmp_path):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    phase = batch.pop("phase")
    for rows in (batch.clone().lock_(), batch.clone().memmap_(tmp_path / "rows")):
        assert torch.equal(LabelPhases()(rows)["phase"], phase)
        assert "phase" not in rows.keys(), "what is locked stays as it is"


def test_episode_keys_decode_what_acted(policy, make_batch):
    batch = make_batch(policy, [2, 3], [1, 0], [0, 0])
    acted = EpisodeKeys(("vla_action", "tokens"), decode=lambda tokens: tokens.double() / 4 - 0.5)(
        batch.exclude(("vla_action", "chunk"))
    )
    assert torch.equal(acted["vla_action", "chunk"], batch["vla_action", "tokens"].double() / 4 - 0.5)
