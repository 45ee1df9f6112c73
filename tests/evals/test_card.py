from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from gymnasium import spaces

from pcm_rl.cli import main
from pcm_rl.config import ConfigError, load_config, save_config
from pcm_rl.evals.card import hub_name
from pcm_rl.evals.export import export_run
from pcm_rl.training.build import policy_for
from pcm_rl.training.checkpoint import Snapshot
from pcm_rl.training.generations import add_generation

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("tokenizers")

EVALUATIONS = ((0, 4), (2, 9), (4, 7), (6, 10))  # step, successes of 10; the last one is of no checkpoint
SUMMARY = {
    "init_states": {"train": "2-9", "evaluation": "0, 1"},
    "hardware": "a processor, 2 cores",
    "versions": {"pcm_rl": "9.9", "torch": "2.7"},
}


@pytest.fixture
def base(openvla_folder, tmp_path):
    """A base checkpoint in a folder of this machine, with a card of its own."""
    folder = Path(shutil.copytree(openvla_folder, tmp_path / "home" / "base"))
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# The base\n")
    return folder


@pytest.fixture
def run(base, tmp_path):
    """A run of it as training leaves it, with a checkpoint after step 4."""
    config = load_config(
        None,
        [
            "policy.family=openvla", f"policy.openvla.checkpoint={base}", "policy.openvla.lora.rank=2",
            "policy.openvla.lora.targets=[q_proj]", "env.id=pcm_rl/Reach-v0", "env.chunk_length=2", "sft.steps=0",
            f"env.kwargs={{horizon: 24, scenes: {tmp_path}/scenes}}", "env.eval_states=2", "groups=3", "seed=5",
            f"run_dir={tmp_path}/runs", "name=here", "selection.budget=4",
        ],
    )  # fmt: skip
    policy = policy_for(config.policy, None, spaces.Box(-1.0, 1.0, (2, 7)), "cpu")
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    state = {"step": 4, "env_steps": 960, "gradient_chunks": 48, "seconds": 12.4, "summary": SUMMARY}
    held = Snapshot.of(
        policy=policy, optimizer=torch.optim.SGD(trained), generators={}, state=state, success=0.7,
        metadata={"chunk": "2 7", "held_out": "0, 1"},
    )  # fmt: skip
    config.folder.mkdir(parents=True)
    save_config(config, config.folder / "config.yaml")
    rows = "".join(f"{step},{successes},10\n" for step, successes in EVALUATIONS)
    (config.folder / "evaluation.csv").write_text(f"step,successes,episodes\n{rows}")
    add_generation(config.folder, lambda folder: held.write(folder, "0123", {}), keep=1)
    return config


def test_a_card_says_what_the_run_has_measured(run, tmp_path):
    folder = export_run(run.folder, tmp_path / "merged")
    card = hub.ModelCard.load(folder / "README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license, data.base_model) == ("pcm_rl", "robotics", "mit", None)
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.task_type) == ("success_rate", 0.7, "robotics")
    assert {"openvla", "robotics"} <= set(data.tags) and "lora" not in data.tags
    for line in (
        "| before training | 0 | 40.0% | 16.8% to 68.7% | 4/10 |",
        "| the best evaluation, of another checkpoint | 2 | 90.0% | 59.6% to 98.2% | 9/10 |",
        "| this policy | 4 | 70.0% | 39.7% to 89.2% | 7/10 |",
        "| trained weights | LoRA adapters of rank 2 |",
        "| method | GRPO, `pcm` |",
        "| budget | 4 chunks a trajectory |",
        "| training steps | 4, each of 3 groups of 10 rollouts |",
        "| seed | 5 |",
        "| environment steps | 960 |",
        "| chunks through the backward pass | 48 |",
        "| hardware | a processor, 2 cores |",
        "| versions | pcm_rl 9.9, torch 2.7 |",
        "1 task, 2 held-out states each: 0, 1. There are as many states as wanted",
    ):
        assert line in card.text, line
    assert "| 6 |" not in card.text, "a later evaluation is not of this policy"
    assert (folder / "README-base.md").read_text().endswith("# The base\n")


def test_nothing_written_names_a_path_of_the_machine_and_the_recipe_is_the_runs(run, base, tmp_path):
    folder = export_run(run.folder, tmp_path / "merged")
    for name in ("README.md", "recipe.yaml"):
        assert str(tmp_path) not in (folder / name).read_text() and "/home/" not in (folder / name).read_text()
    assert (
        "# env.kwargs.scenes was a path on the machine of the training: give your own\n"
        in (folder / "recipe.yaml").read_text()
    )
    (command,) = re.findall(r"pcm-rl train (.*) name=continued", (folder / "README.md").read_text())
    words = command.replace("POLICY", str(folder)).split()
    assert words[0] == "--config"
    config = load_config(words[1], words[2:])
    assert (config.selection, config.groups, config.seed) == (run.selection, run.groups, run.seed)
    assert dict(config.env.kwargs) == {"horizon": 24}
    assert config.env.eval_states == 2 and config.env.id == run.env.id and config.sft.steps == 0
    assert config.policy.openvla.lora == run.policy.openvla.lora
    assert config.policy.openvla.checkpoint == str(folder) and config.run_dir == "runs"


def test_adapters_name_their_base_as_the_hub_does(run, base, tmp_path):
    folder = export_run(run.folder, tmp_path / "adapters", adapters=True, base_model="them/base")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "them/base"
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.base_model == "them/base" and card.data.license is None and "lora" in card.data.tags
    assert "hf download them/base --local-dir BASE" in card.text
    (command,) = re.findall(r"pcm-rl train (.*) steps=0 name=measured", card.text)
    words = command.replace("POLICY", str(folder)).replace("BASE", str(base)).split()
    config = load_config(words[1], words[2:])
    assert config.policy.openvla.adapters == str(folder) and config.policy.openvla.checkpoint == str(base)
    space = spaces.Box(-1.0, 1.0, (2, 7))
    assert policy_for(config.policy, None, space, "cpu").source.folder == folder


def test_the_name_of_a_base_is_known_in_the_hubs_cache_only(capsys, run, tmp_path):
    def of(folder, given=None):
        return hub_name(load_config(None, ["policy.family=pi0", f"policy.pi0.checkpoint={folder}"]), given)

    assert of("/x/hub/models--them--a-base_1.0/snapshots/0123") == "them/a-base_1.0"
    assert of("checkpoints/tiny") is None is of("them/base")
    assert of("checkpoints/tiny", "them/base") == "them/base"
    with pytest.raises(ConfigError, match="expects the OWNER/NAME"):
        of("checkpoints/tiny", "/a/path")
    assert main(["export", str(run.folder), str(tmp_path / "out"), "--base-model", "base"]) == 2
    assert "got 'base'" in capsys.readouterr().err and not (tmp_path / "out").exists()
