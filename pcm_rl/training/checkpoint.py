"""Checkpoints: safetensors and JSON, which replace older ones in one move. Nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from pcm_rl.support.writing import replacing, replacing_folder

FORMAT = 1


def save_checkpoint(
    folder: Path,
    *,
    policy: nn.Module,
    optimizer: Optimizer,
    generators: dict[str, Generator],
    state: dict[str, Any],
    critic: nn.Module | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write the whole state of a run; an older checkpoint of that name stays until the new one is complete.

    Args:
        folder: The checkpoint, a folder.
        policy: Its weights go to ``policy.safetensors``.
        optimizer: Its state goes to ``optimizer.safetensors``.
        generators: Their states, with torch's own, go to ``random.safetensors``.
        state: Anything that JSON keeps exactly: step, keep probabilities, cursors.
        critic: Its weights go to ``critic.safetensors``.
        metadata: Strings written into ``policy.safetensors``.
    """
    with replacing_folder(folder, previous=_previous(folder)) as partial:
        save_policy(policy, partial / "policy.safetensors", metadata)
        save_file(_optimizer_tensors(optimizer), partial / "optimizer.safetensors")
        if critic is not None:
            save_policy(critic, partial / "critic.safetensors")
        save_file(_random_states(generators), partial / "random.safetensors")
        (partial / "state.json").write_text(json.dumps({"format": FORMAT, **state}, indent=1, allow_nan=False))


def find_checkpoint(folder: Path) -> Path | None:
    """The folder of the last complete checkpoint of that name; None if there is none.

    It is not ``folder`` itself if a save was interrupted between its two moves.
    """
    return next((place for place in (folder, _previous(folder)) if (place / "state.json").is_file()), None)


def load_checkpoint(
    folder: Path,
    *,
    policy: nn.Module,
    optimizer: Optimizer,
    generators: dict[str, Generator],
    critic: nn.Module | None = None,
) -> dict[str, Any]:
    """Restore what :func:`save_checkpoint` wrote, in place; on a CPU the run then continues bit for bit.

    Returns:
        The ``state`` dictionary.

    Raises:
        FileNotFoundError: If there is no complete checkpoint.
        ValueError: If it has another format, does not fit the policy, or lacks a critic that the run needs.
    """
    complete = find_checkpoint(folder)
    if complete is None:
        raise FileNotFoundError(f"no checkpoint at {folder}; a run writes one every save_every steps and at its end")
    folder = complete
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    if state.get("format") != FORMAT:
        raise ValueError(f"{folder} has checkpoint format {state.get('format')}, this version reads {FORMAT}")
    load_policy(policy, folder / "policy.safetensors")
    if critic is not None:
        if not (folder / "critic.safetensors").is_file():
            raise ValueError(f"{folder} holds no critic: its run had advantage.name=group, and goes on with that only")
        load_policy(critic, folder / "critic.safetensors")
    _load_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
    _set_random_states(generators, load_file(folder / "random.safetensors"))
    return state


def save_policy(policy: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a policy's weights, contiguous and on the CPU, with string ``metadata``.

    Frozen parameters are left out: the checkpoint that the policy was built from has them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in _trained_state(policy).items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def load_policy(policy: nn.Module, path: str | Path) -> None:
    """Read a policy's weights.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If its tensors do not fit the policy, naming the first difference.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no policy file at {path}")
    state = _trained_state(policy)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        if names != set(state):
            raise ValueError(f"{path} does not fit the policy: differing tensors {sorted(names ^ set(state))[:4]}")
        for name in sorted(names):
            tensor = file.get_tensor(name)
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"{path}: {name} has shape {tuple(tensor.shape)}, the policy {tuple(state[name].shape)}; "
                    "was it trained with another policy.state.width, policy.state.num_bins or env.chunk_length?"
                )
            state[name].copy_(tensor)


def _trained_state(policy: nn.Module) -> dict[str, Tensor]:
    """Buffers and trainable parameters, the tensors of the policy themselves."""
    names = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    names |= {name for name, _ in policy.named_buffers()}
    return {name: value for name, value in policy.state_dict().items() if name in names}


def policy_metadata(path: str | Path) -> dict[str, str]:
    """The strings that :func:`save_policy` wrote beside the weights."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _previous(folder: Path) -> Path:
    return folder.with_name(folder.name + ".previous")


def _random_states(generators: dict[str, Generator]) -> dict[str, Tensor]:
    states = {name: generator.get_state() for name, generator in generators.items()}
    states["torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(generators: dict[str, Generator], states: dict[str, Tensor]) -> None:
    for name, generator in generators.items():
        generator.set_state(states[name])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    flat = {}
    for index, entry in state.items():
        for name, value in entry.items():
            flat[f"{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return flat


def _load_optimizer(optimizer: Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
