"""A run's policy -> a folder that others can load."""

from __future__ import annotations

import json
from pathlib import Path

from gymnasium import spaces

from pcm_rl.config import ConfigError, load_run_config
from pcm_rl.evals.card import Exported, hub_name, write_card
from pcm_rl.policies.family import Exports
from pcm_rl.support.room import check_room
from pcm_rl.training.build import policy_for
from pcm_rl.training.checkpoint import load_policy, policy_metadata
from pcm_rl.training.generations import generations, newest_whole


def export_run(run: str | Path, folder: str | Path, *, adapters: bool = False, base_model: str | None = None) -> Path:
    """Write what a run has trained, in the layout of the checkpoint that it started from, with a model card.

    Args:
        run: Folder of a run, or of ``pcm-rl sft``, whose policy can be exported, such as an OpenVLA.
        folder: New or empty.
        adapters: Only the adapters, as peft writes them, instead of the whole model with the adapters in its weights.
        base_model: ``OWNER/NAME`` of the base checkpoint on the hub, for the card and for peft's file; None where it is
            not known. One in the hub's cache is known.

    Returns:
        ``folder``.

    Raises:
        ConfigError: The run's policy cannot be exported, or has no adapters where they are asked for.
        FileExistsError: ``folder`` holds files.
        FileNotFoundError: There is no run, or it has saved nothing yet.
        OSError: ``folder`` cannot be written to, or its disk has too little room.
    """
    run, folder = Path(run), Path(folder)
    config = load_run_config(run, ["device=cpu"])
    base = hub_name(config, base_model)
    # of a run, or of a supervised start
    saved = (newest_whole(run) if generations(run) else run) / "policy.safetensors"
    if not saved.is_file():
        raise FileNotFoundError(f"{run} has saved no policy yet (no checkpoint and no policy.safetensors)")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give another folder or delete it")
    check_room(folder)
    chunk = tuple(int(size) for size in policy_metadata(saved).get("chunk", "").split())
    if not chunk:
        raise ConfigError(f"{saved} does not say which chunks its policy acts in: an older version wrote it")
    policy = policy_for(config.policy, None, spaces.Box(-1.0, 1.0, chunk), config.device)
    load_policy(policy, saved)
    if not isinstance(policy, Exports):
        raise ConfigError(f"{run}: policy.family={config.policy.family} cannot be exported (it has no export(folder))")
    try:
        policy.export(folder, adapters=adapters)
    except ValueError as error:
        raise ConfigError(f"{run}: {error}") from error
    state, step = {}, None
    if (saved.parent / "state.json").is_file():
        state = json.loads((saved.parent / "state.json").read_bytes())
        step = int(state["step"])
    held_out = policy_metadata(saved).get("held_out")
    write_card(folder, Exported(run, config, step, state, held_out, adapters, base))
    return folder
