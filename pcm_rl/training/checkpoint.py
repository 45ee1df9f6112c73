"""What a checkpoint holds: safetensors and JSON. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from pcm_rl.config import ConfigError
from pcm_rl.support.manifest import MANIFEST, DamagedError, check_files, write_manifest
from pcm_rl.support.optimizer_state import load_optimizer_tensors, optimizer_tensors
from pcm_rl.support.tensors import save_tensors
from pcm_rl.support.writing import replacing
from pcm_rl.training.ahead import Origin, global_states
from pcm_rl.training.generations import FORMAT

ACTING = "acting.safetensors"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """The whole state of a run after a step, copied to the CPU: it stays as it is while the run goes on.

    Attributes:
        step: The step.
        success: Success of the evaluation after this step; None without one.
        policy: Trained weights and buffers.
        optimizer: Tensors of its state, named by the number of the parameter.
        critic: Its ``state_dict`` without frozen parameters; None without a critic.
        acting: Trained weights and buffers of the policy that plays the next step's rollouts; None if they are not
            collected ahead.
        random: States of all generators.
        state: JSON of everything else.
        names: Names of the trained parameters, in the optimiser's order.
        metadata: Strings for the policy's file.
    """

    step: int
    success: float | None
    policy: Tensors
    optimizer: Tensors
    critic: Tensors | None
    acting: Tensors | None
    random: Tensors
    state: str
    names: list[str]
    metadata: dict[str, str]

    @classmethod
    def of(
        cls,
        *,
        policy: nn.Module,
        optimizer: Optimizer,
        generators: Mapping[str, Generator],
        critic: nn.Module | None = None,
        state: dict[str, Any],
        success: float | None = None,
        metadata: dict[str, str] | None = None,
        ahead: Origin | None = None,
    ) -> Snapshot:
        """Copy the state of a run.

        Args:
            policy: Its frozen parameters are left out: the checkpoint that it was built from has them.
            optimizer: Its state, and its options such as the learning rate that a scheduler has come to.
            generators: Their states, with torch's own.
            critic: Its weights.
            state: ``step``, and anything else that JSON keeps exactly: keep probabilities, cursors.
            success: Of an evaluation after this step.
            metadata: Strings for the policy's file.
            ahead: What the next step's rollouts began from, where they are collected already; torch's own random
                states are those.

        Raises:
            ValueError: ``state`` holds a nan.
        """
        options = {"optimizer": {"made_with": optimizer.defaults, "groups": _options(optimizer)}}
        return cls(
            step=int(state["step"]),
            success=success,
            policy=_copied(_trained_state(policy)),
            optimizer=_copied(optimizer_tensors(optimizer)),
            critic=None if critic is None else _copied(_critic_state(critic)),
            acting=None if ahead is None else _copied(_trained_state(ahead.policy)),
            random=_random_states(generators) if ahead is None else _own_states(generators) | ahead.random,
            state=json.dumps({"format": FORMAT, **state, **options}, indent=1, allow_nan=False, default=float),
            names=_trained_names(policy),
            metadata=metadata or {},
        )

    def write(self, folder: Path, run_id: str, copies: Mapping[str, bytes]) -> None:
        """Write all files into an empty folder, the manifest last.

        Args:
            folder: An empty folder.
            run_id: The run that it belongs to.
            copies: Content by name of files in the run's folder, of which a copy is kept: configuration and tables.
        """
        save_tensors(self.policy, folder / "policy.safetensors", self.metadata)
        save_tensors(self.optimizer, folder / "optimizer.safetensors", {"parameters": json.dumps(self.names)})
        if self.critic is not None:
            save_tensors(self.critic, folder / "critic.safetensors")
        if self.acting is not None:
            save_tensors(self.acting, folder / ACTING)
        save_tensors(self.random, folder / "random.safetensors")
        (folder / "state.json").write_text(self.state)
        for name, content in copies.items():
            (folder / name).write_bytes(content)
        write_manifest(folder, {"format": FORMAT, "run": run_id, "step": self.step, "success": self.success})


def load_checkpoint(
    folder: Path,
    *,
    policy: nn.Module,
    optimizer: Optimizer,
    generators: Mapping[str, Generator],
    critic: nn.Module | None = None,
) -> dict[str, Any]:
    """Restore what a :class:`Snapshot` wrote, in place; on a CPU the run then continues bit for bit.

    The optimiser's options, such as its learning rate, are the saved ones, but for those that it was now made with
    another value of than then.

    Returns:
        The ``state`` dictionary.

    Raises:
        ConfigError: A file does not fit the policy or its optimiser, or lacks a critic that the run needs.
    """
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    load_policy(policy, folder / "policy.safetensors")
    if critic is not None:
        if not (folder / "critic.safetensors").is_file():
            raise ConfigError(f"{folder} holds no critic: its run had advantage.name=group, and goes on with that only")
        _load_critic(critic, folder / "critic.safetensors")
    _load_optimizer(optimizer, _trained_names(policy), folder / "optimizer.safetensors", state.get("optimizer"))
    _set_random_states(generators, folder / "random.safetensors")
    return state


def save_policy(policy: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a policy's weights, contiguous and on the CPU, with string ``metadata``.

    Frozen parameters are left out: the checkpoint that the policy was built from has them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_tensors(_copied(_trained_state(policy)), partial, metadata)


def load_policy(policy: nn.Module, path: str | Path) -> None:
    """Read a policy's weights; of a checkpoint's file the checksum is compared first.

    Raises:
        ConfigError: The file is damaged, or its tensors do not fit the policy; the first difference is named.
        FileNotFoundError: If the file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no policy file at {path}")
    if (path.parent / MANIFEST).is_file():
        try:
            check_files(path.parent, [path.name])
        except DamagedError as damage:
            raise ConfigError(f"{path.parent} is damaged: {damage}") from damage
    state = _trained_state(policy)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path} is no file of weights, or is cut: {error}") from error
    if set(tensors) != set(state):
        raise ConfigError(f"{path} does not fit the policy: differing tensors {sorted(set(tensors) ^ set(state))[:4]}")
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != state[name].shape:
            raise ConfigError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the policy {tuple(state[name].shape)}; "
                "was it trained with another width, number of bins (section policy) or env.chunk_length?"
            )
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def policy_metadata(path: str | Path) -> dict[str, str]:
    """The strings that :func:`save_policy` wrote beside the weights.

    Raises:
        ConfigError: The file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ConfigError(f"{path} is no file of weights, or is cut: {error}") from error


def _trained_names(policy: nn.Module) -> list[str]:
    return [name for name, parameter in policy.named_parameters() if parameter.requires_grad]


def _trained_state(policy: nn.Module) -> Tensors:
    """Buffers and trainable parameters, the tensors of the policy themselves."""
    names = {*_trained_names(policy), *(name for name, _ in policy.named_buffers())}
    return {name: value for name, value in policy.state_dict().items() if name in names}


def _critic_state(critic: nn.Module) -> Tensors:
    """All of its state but frozen parameters; tensors only, since nothing is pickled."""
    frozen = {name for name, parameter in critic.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in critic.state_dict().items() if name not in frozen and torch.is_tensor(value)}


def _load_critic(critic: nn.Module, path: Path) -> None:
    frozen = {name: p for name, p in critic.named_parameters() if not p.requires_grad}
    try:
        critic.load_state_dict({**frozen, **load_file(path)})
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{path} does not fit the critic: {' '.join(str(error).split())}. Was it made with another "
            "advantage.width, advantage.features or version?"
        ) from error


def _copied(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _own_states(generators: Mapping[str, Generator]) -> Tensors:
    return {name: generator.get_state() for name, generator in generators.items()}


def _random_states(generators: Mapping[str, Generator]) -> Tensors:
    return _own_states(generators) | global_states()


def _set_random_states(generators: Mapping[str, Generator], path: Path) -> None:
    states = load_file(path)
    if missing := sorted({*generators, "torch"} - set(states)):
        raise ConfigError(f"{path} holds no state of {', '.join(missing)}: the run was made without")
    for name, generator in generators.items():
        generator.set_state(states[name])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Of each group of parameters, without the parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _load_optimizer(optimizer: Optimizer, names: list[str], path: Path, options: dict[str, Any] | None) -> None:
    with safe_open(path, "pt") as file:
        saved_names = json.loads((file.metadata() or {}).get("parameters", json.dumps(names)))
    if saved_names != names:
        differing = sorted(set(saved_names) ^ set(names))[:4] or "their order"
        raise ConfigError(f"{path} is of other parameters than the policy's: {differing}")
    groups = optimizer.state_dict()["param_groups"]
    if options is not None:
        _restore_options(groups, options, optimizer.defaults)
    try:
        load_optimizer_tensors(optimizer, load_file(path), groups)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _restore_options(groups: list[dict[str, Any]], saved: dict[str, Any], defaults: dict[str, Any]) -> None:
    """The saved options, unless the optimiser was now made with another value of one: an override counts."""
    if len(groups) != len(saved["groups"]):
        raise ConfigError(f"the optimiser has {len(groups)} groups of parameters, {len(saved['groups'])} were saved")
    for group, before in zip(groups, saved["groups"], strict=True):
        for key, value in before.items():
            if key not in defaults or _plain(defaults[key]) == saved["made_with"].get(key):
                group[key] = tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value, default=float))
