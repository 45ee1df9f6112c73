"""A run's OpenVLA -> a folder that others can load."""

from __future__ import annotations

from pathlib import Path

from pcm_rl.config import ConfigError, load_run_config
from pcm_rl.training.build import openvla_policy
from pcm_rl.training.checkpoint import load_policy

POLICY_FILES = (
    Path("checkpoint") / "policy.safetensors",
    Path("policy.safetensors"),
)  # of a run, of a supervised start


def export_run(run: str | Path, folder: str | Path, *, adapters: bool = False) -> Path:
    """Write what a run has trained, in the layout of the checkpoint that it started from.

    Args:
        run: Folder of a run, or of ``pcm-rl sft``, of an OpenVLA policy.
        folder: New or empty.
        adapters: Only the adapters, as peft writes them, instead of the whole model with the adapters in its weights.

    Returns:
        ``folder``.

    Raises:
        ConfigError: The run's policy is no OpenVLA, or has no adapters where they are asked for.
        FileExistsError: ``folder`` holds files.
        FileNotFoundError: There is no run, or it has saved nothing yet.
    """
    from pcm_rl.policies.openvla.lora import save_adapters
    from pcm_rl.policies.openvla.merged import save_merged

    run, folder = Path(run), Path(folder)
    config = load_run_config(run, ["device=cpu"])
    if config.policy.checkpoint is None:
        raise ConfigError(f"{run} trained a policy on states; only an OpenVLA (policy.checkpoint) can be exported")
    if adapters and not config.policy.lora.rank:
        raise ConfigError(f"{run} trained every weight (policy.lora.rank=0), so there are no adapters to export")
    saved = next((run / name for name in POLICY_FILES if (run / name).is_file()), None)
    if saved is None:
        raise FileNotFoundError(f"{run} has saved no policy yet (no {' and no '.join(map(str, POLICY_FILES))})")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give another folder or delete it")
    policy = openvla_policy(config)
    load_policy(policy, saved)
    if adapters:
        return save_adapters(policy.model, folder, str(config.policy.checkpoint))
    return save_merged(policy.model, policy.checkpoint, folder)
