"""A tiny pi0, and rows that it decided."""

from __future__ import annotations

import pytest
import torch
from tensordict import NonTensorStack, TensorDict

TEXTS = ["lift it", "put the bowl on the plate", "go", "open the top drawer of the cabinet and look"]


@pytest.fixture(scope="session")
def pi0_folder(tmp_path_factory):
    """A checkpoint; tests must not write here."""
    pytest.importorskip("transformers", minversion="5.24")
    from pcm_rl.policies.pi0.tiny import Sizes, write_tiny_checkpoint

    sizes = Sizes(image_size=28, width=32, depth=2, chunk_size=6, steps=3)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("pi0") / "base", sizes)


@pytest.fixture(scope="session")
def make_pi0(pi0_folder):
    """``make_pi0(folder=None, chunk_length=4, **options)``: a policy on the CPU whose box cuts nothing."""
    from pcm_rl.policies.pi0 import Pi0Policy, open_checkpoint

    def build(folder=None, chunk_length=4, *, low=-100.0, high=100.0, **options) -> Pi0Policy:
        torch.manual_seed(0)  # of adapters
        box = {"low": torch.tensor(low), "high": torch.tensor(high)}
        return Pi0Policy(open_checkpoint(folder or pi0_folder), chunk_length, **box, **options)

    return build


@pytest.fixture(scope="session")
def pi0(make_pi0):
    """A policy with two cameras; tests must not change it."""
    return make_pi0(cameras=2)


@pytest.fixture(scope="session")
def record_pi0():
    """``record_pi0(policy, texts=TEXTS)``: one recorded row, its own episode, for each instruction."""

    def record(policy, texts=TEXTS, *, seed=0) -> TensorDict:
        generator = torch.Generator().manual_seed(seed)
        rows, size = len(texts), policy.checkpoint.image_size
        images = {
            key: torch.randint(0, 256, (rows, 3, size, size), generator=generator, dtype=torch.uint8)
            for key in policy.image_keys
        }
        batch = TensorDict(images, batch_size=[rows])
        batch["observation", "state"] = torch.randn(rows, 8, generator=generator)
        batch["language_instruction"] = NonTensorStack(*texts)
        torch.manual_seed(seed)
        policy(batch)
        batch["action_is_pad"] = torch.zeros(rows, policy.chunk_size, dtype=torch.bool)
        batch["action_is_pad"][-1, 1:] = True
        batch["advantage"] = torch.randn(rows, generator=generator)
        batch["weight"] = torch.rand(rows, generator=generator) + 0.5
        batch["episode_id"] = torch.arange(rows)
        return batch

    return record
