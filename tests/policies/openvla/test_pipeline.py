"""From a checkpoint folder to another one: LIBERO's pixels, chunk selection, LoRA update, save, load, evaluate."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pcm_rl.config import ConfigError, load_config
from pcm_rl.evals.export import export_run
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.policies.openvla import load_model, open_checkpoint
from pcm_rl.policies.openvla.tiny import TINY, write_tiny_checkpoint
from pcm_rl.training.checkpoint import save_policy
from pcm_rl.training.trainer import Trainer, train

pytestmark = [pytest.mark.libero, pytest.mark.slow]
SIZE = 56


@pytest.fixture
def libero(monkeypatch):
    """LIBERO, where an episode succeeds as soon as the hand is left of the middle: random actions often do that."""
    envs = pytest.importorskip("libero.libero.envs.env_wrapper")

    def left_of_the_middle(env) -> bool:
        return env.sim.data.site_xpos[env.robots[0].eef_site_id][1] > 0.01

    monkeypatch.setattr(envs.ControlEnv, "check_success", left_of_the_middle)


def overrides(checkpoint: Path, folder: Path) -> list[str]:
    return [
        f"run_dir={folder}",
        "policy.family=openvla",
        f"policy.openvla.checkpoint={checkpoint}",
        "policy.checkpointing=always",
        "env.workers=false",
        "env.num_envs=1",
        f"env.images.size={SIZE}",
        f"env.kwargs.camera_size={SIZE}",
        "env.kwargs.horizon=16",
        "env.max_chunks=2",
        "sft.steps=0",
        "groups=2",
        "group_size=4",
        "eval_episodes=2",
        "eval_every=0",
        "save_every=1",
        "selection.budget=1",
        "advantage.name=critic",  # sees images only, through the policy
        "advantage.features=policy",
        "update.micro_tokens=400",
        "record=false",
        "logger=none",
    ]


def test_the_whole_way_on_the_real_simulator(libero, tmp_path):
    start = write_tiny_checkpoint(tmp_path / "start", dataclasses.replace(TINY, image_size=SIZE))
    settings = overrides(start, tmp_path)
    recipe = Path(__file__).parents[3] / "configs" / "openvla_tiny_libero.yaml"
    said: list[str] = []
    train(load_config(recipe, [*settings, "name=run", "steps=1"]), say=said.append)
    assert any("gradient checkpointing on" in line for line in said)
    config = load_config(recipe, [*settings, "name=run", "steps=2"])
    trainer = train(config, resume=True)
    assert trainer.step == 2

    trained = {name: value for name, value in trainer.policy.named_parameters() if value.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert all(value.abs().sum() > 0 for name, value in trained.items() if "lora_B" in name), "nothing was learned"
    saved = load_file(config.folder / "checkpoint" / "policy.safetensors")
    assert not any("base_layer" in name or "embed" in name for name in saved), "the frozen base is not saved"

    merged = export_run(config.folder, tmp_path / "merged")
    with pytest.raises(FileExistsError, match="not empty"):
        export_run(config.folder, tmp_path / "merged")
    adapters = export_run(config.folder, tmp_path / "adapters", adapters=True)
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "recipe.yaml"]
    assert sorted(path.name for path in adapters.iterdir()) == names
    model = load_model(open_checkpoint(merged), 56, dtype=torch.float32)
    pixels = torch.randn(1, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    prompt, length = trainer.policy.prompter.batch(["pick up the alphabet soup"])
    logits = [one(one.patch_features(pixels), prompt, length) for one in (model, trainer.policy.model)]
    assert torch.allclose(*logits, atol=0.05), "merging rounds to the checkpoint's bfloat16, and no more"

    # the exported checkpoint is a start like the published one
    again = Trainer(load_config(recipe, [*overrides(merged, tmp_path), "name=again"]))
    assert again.evaluate().outcome.numel() == 2
    again.env.close()


def test_what_cannot_be_exported_is_said(tmp_path):
    run = tmp_path / "states"
    run.mkdir()
    (run / "config.yaml").write_text("env: {id: pcm_rl/Reach-v0}\n")
    with pytest.raises(FileNotFoundError, match="has saved no policy yet"):
        export_run(run, tmp_path / "out")
    policy = StateTokenPolicy(26)
    save_policy(policy, run / "policy.safetensors")
    with pytest.raises(ConfigError, match="does not say which chunks"):
        export_run(run, tmp_path / "out")
    save_policy(policy, run / "policy.safetensors", {"chunk": "8 7"})
    with pytest.raises(ConfigError, match="cannot be built, and so not exported, without its environment"):
        export_run(run, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        export_run(tmp_path / "none", tmp_path / "out")
