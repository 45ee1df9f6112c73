"""Configurations from files: YAML recipes, ``key=value`` overrides, and what a run folder holds."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pcm_rl.config.checks import ConfigError
from pcm_rl.config.schema import Config


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file, then ``key=value`` overrides.

    Args:
        path: YAML file; None for the defaults.
        overrides: Such as ``["seed=1", "selection.budget=8"]``.

    Raises:
        ConfigError: For an unknown key (with the nearest known one), a value of the wrong type or out of range, or an
            override that is not ``key=value``.
        FileNotFoundError: If the file does not exist.
    """
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"expected key=value, got {override!r}")
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    base = OmegaConf.structured(Config)
    _unlock(base)
    try:
        given: Any = OmegaConf.load(path) if path is not None else OmegaConf.create({})
        given = OmegaConf.merge(given, OmegaConf.from_dotlist(list(overrides)))
        _check_keys(given, Config, "")
        config = OmegaConf.to_object(OmegaConf.merge(base, given))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, Config)
    return config


def load_run_config(folder: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Configuration of an existing run, with overrides such as ``steps=120``.

    Raises:
        FileNotFoundError: If the folder holds no run.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run (no config.yaml)")
    parent, name = str(Path(folder).parent), Path(folder).name
    # the checkpoint holds the policy: the file that the run once started from may be gone
    return load_config(path, [f"run_dir={parent}", f"name={name}", *overrides, "policy.init=null"])


def save_config(config: Config, path: Path) -> None:
    """Write every field as YAML; :func:`load_config` gives an equal configuration."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def config_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    keys = []
    for item in fields(cls):
        sub = item.default_factory if isinstance(item.default_factory, type) else None
        nested = sub is not None and is_dataclass(sub)
        keys += config_keys(sub, f"{prefix}{item.name}.") if nested and sub is not None else [f"{prefix}{item.name}"]
    return keys


def _check_keys(given: Any, cls: type, prefix: str) -> None:
    known = {item.name: item for item in fields(cls)}
    for key in given:
        if key not in known:
            near = [known for known in config_keys() if known.rsplit(".", 1)[-1] == key and "." in known]
            near += difflib.get_close_matches(f"{prefix}{key}", config_keys(), n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown key {prefix + str(key)!r}{hint}")
        sub = known[key].default_factory
        if isinstance(sub, type) and is_dataclass(sub) and isinstance(given._get_node(key), DictConfig):
            _check_keys(given[key], sub, f"{prefix}{key}.")


def _unlock(node: DictConfig) -> None:
    # frozen dataclasses make read-only nodes; the file and the overrides are merged before the objects are built
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _unlock(child)
