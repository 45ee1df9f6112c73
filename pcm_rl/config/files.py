"""Configurations from files: YAML recipes, ``key=value`` overrides, and what a run folder holds."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pcm_rl.config.checks import ConfigError
from pcm_rl.config.recipes import recipe_file
from pcm_rl.config.schema import Config
from pcm_rl.config.written import as_written, mark
from pcm_rl.support.writing import replacing

_HEAD = "# Every option of this run; the last line is a comment, too.\n"
_END = "# end\n"


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file, then ``key=value`` overrides.

    An override of a text field is taken as it is written: ``name=007`` is the text ``007``. Quotes around the whole of
    it are left out, and ``null`` (or nothing) is None where the field may be None. Every other value is read as YAML.
    An override of a mapping or a list takes its place, so that ``env.tasks={}`` empties it; one of a single entry, such
    as ``env.kwargs.horizon=9``, leaves the other entries.

    Args:
        path: YAML file, or the name of a recipe of the package such as ``"reach"``; None for the defaults.
        overrides: Such as ``["seed=1", "selection.budget=8"]``.

    Raises:
        ConfigError: For an unknown key (with the nearest known one), a value of the wrong type or out of range, or an
            override that is not ``key=value``.
        FileNotFoundError: If there is neither.
    """
    return _load(path, [_parsed(override) for override in overrides])


def load_run_config(folder: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Configuration of an existing run, with overrides such as ``steps=120``.

    Args:
        folder: The run's folder. Its name is a text, whatever it looks like: ``007`` is not ``7``.
        overrides: Changes; not of ``name`` and ``run_dir``, which say which run it is.

    Raises:
        ConfigError: If an override does not fit, or the folder's name is empty.
        FileNotFoundError: If the folder holds no run.
    """
    if not str(folder).strip():
        raise ConfigError("expected the folder of a run, got an empty name")
    if moved := [override for override in overrides if override.partition("=")[0] in ("name", "run_dir")]:
        raise ConfigError(f"{folder} is the run, and {moved[0]} would name another one; rename the folder instead")
    folder = Path(folder)
    if folder.name in ("", ".."):
        folder = folder.resolve()
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run (no config.yaml)")
    _refuse_cut(path)
    here = [("run_dir", str(folder.parent)), ("name", folder.name)]
    # the checkpoint holds the policy: the file that the run once started from may be gone
    return _load(path, [*here, *(_parsed(override) for override in overrides), ("policy.init", None)])


def save_config(config: Config, path: Path) -> None:
    """Write every field as YAML; :func:`load_config` gives an equal configuration.

    What the recipe takes from the environment, ``${oc.env:TOKEN}``, is written as the recipe has it.
    """
    with replacing(path) as partial:
        partial.write_text(config_text(config))


def config_text(config: Config) -> str:
    """What :func:`save_config` writes."""
    return f"{_HEAD}{OmegaConf.to_yaml(OmegaConf.create(as_written(config)))}{_END}"


def config_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    keys = []
    for item in fields(cls):
        sub = item.default_factory if isinstance(item.default_factory, type) else None
        nested = sub is not None and is_dataclass(sub)
        keys += config_keys(sub, f"{prefix}{item.name}.") if nested and sub is not None else [f"{prefix}{item.name}"]
    return keys


def _load(path: str | Path | None, changes: Iterable[tuple[str, Any]]) -> Config:
    path = None if path is None else recipe_file(path)
    base = OmegaConf.structured(Config)
    _unlock(base)
    try:
        given: Any = OmegaConf.create({}) if path is None else _read_mapping(path)
        for key, value in changes:
            OmegaConf.update(given, key, value, merge=_is_section(key), force_add=True)
        _check_keys(given, Config, "")
        merged = OmegaConf.merge(base, given)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error
    except TypeError as error:  # OmegaConf's word for a mapping in place of a list
        raise ConfigError(f"{path or 'configuration'}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    assert isinstance(config, Config)
    mark(config, merged)
    return config


def _refuse_cut(path: Path) -> None:
    """A part of a configuration is one, too, with defaults for all that is missing."""
    text = _text(path)
    if not text.strip() or (text.startswith(_HEAD) and not text.endswith(_END)):
        raise ConfigError(
            f"{path} is cut: a part of it is missing, and defaults would take its place; restore the file"
        )


def _read_mapping(path: Path) -> DictConfig:
    if not _text(path).strip():
        raise ConfigError(f"{path} is empty; expected YAML such as `steps: 60`")
    try:
        given = OmegaConf.load(path)
    except OSError:  # OmegaConf's word for a number or a date alone
        given = None
    if not isinstance(given, DictConfig):
        raise ConfigError(f"{path} holds no options; expected YAML such as `steps: 60`")
    OmegaConf.to_container(given, throw_on_missing=True)  # refuses ???, which a merge would pass over
    return given


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text: {error}") from error


def _parsed(override: str) -> tuple[str, Any]:
    """Key and value of ``key=value``; text stays as it is written, anything else is YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"expected key=value, got {override!r}")
    kind = _field_type(key)
    if kind == str | None and text in ("", "null"):
        return key, None
    if kind in (str, str | None):
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return key, text[1:-1] if quoted else text
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is no YAML: {' '.join(str(error).split())}") from error
    return key, parsed["value"]


def _field_type(key: str) -> Any:
    """Type of the field with this dotted key, None where there is no such field."""
    kind: Any = Config
    for name in key.split("."):
        kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return kind


def _is_section(key: str) -> bool:
    return is_dataclass(_field_type(key))


def _check_keys(given: Any, cls: type, prefix: str) -> None:
    known = {item.name: item for item in fields(cls)}
    for key in given:
        if key not in known:
            near = [other for other in config_keys() if "." in other and other.rsplit(".", 1)[-1] == key]
            near += difflib.get_close_matches(f"{prefix}{key}", config_keys(), n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown key {prefix + str(key)!r}{hint}")
        sub, node = known[key].default_factory, given._get_node(key)
        if isinstance(sub, type) and is_dataclass(sub) and isinstance(node, DictConfig):
            _check_keys(given[key], sub, f"{prefix}{key}.")
        elif _field_type(f"{prefix}{key}") in (str, str | None):
            _check_text(f"{prefix}{key}", node)


def _check_text(key: str, node: Any) -> None:
    # OmegaConf would make text of a number, another one than was written: 007 -> 7, 12e4567 -> inf
    value = node._value()
    if isinstance(value, bool | int | float):
        raise ConfigError(f"{key} is text, and YAML reads {value!r} there; put it in quotes")


def _unlock(node: DictConfig) -> None:
    # frozen dataclasses make read-only nodes; the file and the overrides are merged before the objects are built
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _unlock(child)
