"""Shared builders: synthetic batches in the schema and small policies in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from fake_cuda import fake_cuda
from tensordict import NonTensorStack, TensorDict

from pcm_rl.advantage import group_advantage
from pcm_rl.episodes import label_episodes
from pcm_rl.policies import StateTokenPolicy

torch.set_num_threads(1)

STATE_DIM, ACTION_DIM, LENGTH, BINS = 6, 3, 4, 5


@pytest.fixture(autouse=True)
def _device(request) -> Iterator[None]:
    """Tests marked ``gpu`` run on a GPU, and without one on the simulated device."""
    if request.node.get_closest_marker("gpu") is None or torch.cuda.is_available():
        yield
        return
    with fake_cuda():
        yield


@pytest.fixture(scope="session", autouse=True)
def _sb3_logs(tmp_path_factory) -> Iterator[None]:
    """Stable-Baselines3 makes a folder of logs for every ``learn``, by default one in ``/tmp`` that stays there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        yield


HALF_TRAINED = [
    "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=96", "env.max_chunks=12", "env.num_envs=18", "env.eval_states=16",
    "groups=3", "group_size=6", "eval_episodes=16", "eval_every=2", "logger=none", "record=false",
    "demos.episodes=20", "selection.budget=4", "selection.refresh_every=2", "policy.state.width=64", "threads=1",
]  # fmt: skip


@pytest.fixture(scope="session")
def half_trained(tmp_path_factory) -> list[str]:
    """Overrides of a small Reach run that starts from one half-trained policy."""
    from pcm_rl.config import load_config
    from pcm_rl.training.checkpoint import save_policy
    from pcm_rl.training.trainer import Trainer

    start = tmp_path_factory.mktemp("start") / "start.safetensors"
    trainer = Trainer(load_config(None, [*HALF_TRAINED, "sft.steps=500"]), lambda line: None)
    trainer.supervised_start()
    save_policy(trainer.policy, start)
    return [*HALF_TRAINED, f"policy.init={start}"]


@pytest.fixture
def policy() -> StateTokenPolicy:
    torch.manual_seed(0)
    return StateTokenPolicy(STATE_DIM, ACTION_DIM, LENGTH, width=16, num_bins=BINS).double()


@pytest.fixture
def make_batch():
    """``make_batch(policy, lengths, success, group)``: whole episodes of ``policy``, the last chunk partly executed."""

    def build(policy, lengths, success, group, *, seed=0) -> TensorDict:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.as_tensor(lengths)
        episode = torch.arange(len(lengths)).repeat_interleave(lengths)
        rows = len(episode)
        chunk_id = torch.cat([torch.arange(n) for n in lengths.tolist()])
        last = chunk_id == lengths[episode] - 1
        executed = torch.where(last, torch.randint(1, LENGTH + 1, (rows,), generator=generator), LENGTH)
        batch = TensorDict(
            {
                ("observation", "state"): torch.randn(rows, STATE_DIM, generator=generator, dtype=torch.float64),
                "action_is_pad": torch.arange(LENGTH) >= executed.unsqueeze(-1),
                "success": torch.as_tensor(success)[episode].bool(),
                "group_id": torch.as_tensor(group)[episode],
                "episode_id": episode,
                "chunk_id": chunk_id,
                ("next", "done"): last.unsqueeze(-1),
                ("next", "reward"): (last & torch.as_tensor(success)[episode].bool()).double().unsqueeze(-1),
            },
            batch_size=[rows],
        )
        torch.manual_seed(seed)
        with torch.no_grad():
            policy(batch)
        batch["advantage"] = group_advantage(torch.as_tensor(success), torch.as_tensor(group))[episode].double()
        batch["phase"] = label_episodes(batch)
        return batch

    return build


@pytest.fixture(scope="session")
def openvla_sizes():
    """Of a small OpenVLA: images of 56 pixels (16 patches), and heads that share keys."""
    from pcm_rl.policies.openvla.tiny import TINY

    language = dataclasses.replace(TINY.language, hidden_size=32, intermediate_size=64, num_key_value_heads=2)
    return dataclasses.replace(TINY, image_size=56, language=language)


@pytest.fixture(scope="session")
def openvla_folder(openvla_sizes, tmp_path_factory):
    """A checkpoint of it in float32; tests must not write here."""
    from pcm_rl.policies.openvla.tiny import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("openvla") / "base", openvla_sizes, dtype=torch.float32)


@pytest.fixture
def make_openvla(openvla_folder):
    """``make_openvla(folder=None, chunk_length=2, **options)``: an OpenVLA policy on the CPU."""
    pytest.importorskip("tokenizers")
    from pcm_rl.policies.openvla import OpenVLAPolicy, open_checkpoint

    def build(folder=None, chunk_length=2, **options) -> OpenVLAPolicy:
        return OpenVLAPolicy(open_checkpoint(folder or openvla_folder), chunk_length, **options)

    return build


@pytest.fixture
def record_openvla():
    """``record_openvla(policy, texts)``: one recorded row, its own episode, for each instruction."""

    def record(policy, texts, *, seed=0) -> TensorDict:
        generator = torch.Generator().manual_seed(seed)
        rows, size = len(texts), policy.checkpoint.sizes.image_size
        batch = TensorDict(
            {
                key: torch.randint(0, 256, (rows, 3, size, size), generator=generator, dtype=torch.uint8)
                for key in policy.image_keys
            },
            batch_size=[rows],
        )
        if policy.reads_proprio:
            batch["observation", "state"] = torch.randn(rows, 8, generator=generator)
        batch["language_instruction"] = NonTensorStack(*texts)
        torch.manual_seed(seed)
        with torch.no_grad():
            policy(batch)
        batch["action_is_pad"] = torch.zeros(rows, policy.chunk_size, dtype=torch.bool)
        batch["action_is_pad"][-1, 1:] = True
        batch["advantage"] = torch.randn(rows, generator=generator)
        batch["weight"] = torch.rand(rows, generator=generator) + 0.5
        batch["episode_id"] = torch.arange(rows)
        return batch

    return record
