"""The commands of docs/pi0.md, short: a random checkpoint, demonstrations, SFT, GRPO, evaluation, export on LIBERO."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pcm_rl.cli import main

pytestmark = [pytest.mark.libero, pytest.mark.slow]
SIZE = 28
RECIPE = str(Path(__file__).parents[3] / "configs" / "pi0_tiny_libero.yaml")


@pytest.fixture
def libero(monkeypatch):
    """LIBERO, where every third episode succeeds at once: any three that follow each other have both outcomes."""
    pytest.importorskip("transformers", minversion="5.24")
    env = pytest.importorskip("libero.libero.envs.env_wrapper").ControlEnv
    restore, episodes = env.set_init_state, []

    def counted(self, state):
        episodes.append(state)
        return restore(self, state)

    monkeypatch.setattr(env, "set_init_state", counted)
    monkeypatch.setattr(env, "check_success", lambda self: len(episodes) % 3 == 0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(command, folders_and_flags..., **overrides)``, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    short = [
        "env.workers=false", "env.num_envs=1", f"env.images.size={SIZE}", f"env.kwargs.camera_size={SIZE}",
        "env.kwargs.horizon=16", "env.kwargs.settle_steps=0", "env.max_chunks=2", "demos.episodes=1", "sft.steps=2",
        "sft.target=null", "sft.batch_size=4", "steps=1", "groups=2", "group_size=3", "eval_episodes=1",
        "eval_every=0", "save_every=1", "record=false", "logger=none",
    ]  # fmt: skip

    def command(name, *arguments):
        assert main([name, "--config", RECIPE, *short, *arguments]) == 0

    return command


def metrics(name):
    with open(f"runs/{name}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))[-1]


def test_the_whole_way_on_the_real_simulator(libero, run, tmp_path):
    from pcm_rl.policies.pi0.tiny import main as write_tiny

    write_tiny(["tiny", "--image-size", str(SIZE), "--width", "32", "--depth", "1"])
    start = ["policy.pi0.checkpoint=tiny", "policy.pi0.statistics=libero.json", "policy.pi0.train=all"]
    run("demos", "--statistics", "libero.json")
    run("sft", *start, "name=sft")
    assert main(["export", "runs/sft", "sft"]) == 0
    told = json.loads((tmp_path / "sft" / "processor_config.json").read_text())
    assert told["actions_mean"] == pytest.approx(json.loads(Path("libero.json").read_text())["actions_mean"])

    begin = ["policy.pi0.checkpoint=sft", "sft.steps=0"]
    run("train", *begin, "selection.name=pcm", "selection.budget=1", "name=pcm")
    critic = ["advantage.name=critic", "advantage.features=policy", "selection.name=top-advantage"]
    lora = ["policy.pi0.train=lora", "policy.pi0.lora={rank: 2, alpha: 2, targets: all}"]
    run("train", *begin, *critic, *lora, "selection.budget=1", "name=critic")
    for name in ("pcm", "critic"):
        assert float(metrics(name)["chunks_kept"]) > 0, "nothing was updated"
    before, after = load_file("sft/model.safetensors"), load_file("runs/pcm/checkpoint/policy.safetensors")
    moved = [name for name, value in after.items() if name.startswith("model.")]
    assert moved and not any("vlm" in name for name in moved), "a frozen part is not saved"
    assert main(["eval", "runs/pcm", "--episodes", "1"]) == 0
    for name in ("pcm", "critic"):
        assert main(["export", f"runs/{name}", name]) == 0
    trained = load_file("pcm/model.safetensors")
    assert {name for name in before if not torch.equal(before[name], trained[name])}
    assert main(["export", "runs/critic", "adapters", "--adapters"]) == 0
    assert {path.name for path in Path("adapters").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
