"""The tensors of an optimiser's state, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors themselves, named ``<number of the parameter>.<name>``, such as ``0.exp_avg``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()
    }


def load_optimizer_tensors(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]] | None = None
) -> None:
    """Restore what :func:`optimizer_tensors` gave.

    Args:
        optimizer: Of the same parameters.
        tensors: By name.
        groups: Options of its groups of parameters; None keeps those that it has.

    Raises:
        ValueError: A tensor does not fit its parameter: a fused optimiser would write beyond its end.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)] if index.isdecimal() and int(index) < len(parameters) else None
        if parameter is None or not _fits(value, parameter, scalar=name == "step"):
            raise ValueError(
                f"{key} is {value.dtype} {tuple(value.shape)}, which does not fit the optimiser's {len(parameters)} "
                "parameters"
            )
        state.setdefault(int(index), {})[name] = value.clone()  # torch would keep the tensor itself
    groups = optimizer.state_dict()["param_groups"] if groups is None else groups
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _fits(value: Tensor, parameter: Tensor, *, scalar: bool) -> bool:
    if scalar:
        return value.shape == () and value.is_floating_point()
    return value.shape == parameter.shape and value.dtype == parameter.dtype
