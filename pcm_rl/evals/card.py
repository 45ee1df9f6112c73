"""The model card of an exported policy, and the recipe that loads it: made from the run, without paths of a machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pcm_rl.config import Config, ConfigError, as_written
from pcm_rl.config.written import differences
from pcm_rl.reports.run_files import RunFiles
from pcm_rl.rollouts.evaluate import Success, wilson

CARD, BASE_CARD, RECIPE = "README.md", "README-base.md", "recipe.yaml"
LIBRARY = "pcm_rl"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)")  # folder of a repository in the hub's cache
_PLACES = re.compile(
    r"(run_dir|name|logger|record|threads|device|demos\.path|policy\.init)|policy\.\w+\.(checkpoint|adapters)"
)
_FRESH = re.compile(r"policy\.openvla\.lora\.(rank|alpha|targets)")  # those of an adapters' folder are its own
_PATH = re.compile(r"(/|~|[A-Za-z]:[\\/]|\.{1,2}[\\/])")


@dataclass(frozen=True)
class Exported:
    """What an export holds.

    Attributes:
        run: Folder of the run, or of ``pcm-rl sft``.
        config: Of the run.
        step: Training steps of the policy; None of a supervised start alone.
        state: What the checkpoint says of itself; empty of a supervised start alone.
        held_out: Initial states of each task that the policy was not trained on, as its file says.
        adapters: Whether it holds adapters alone.
        base_model: Name of the base checkpoint on the hub; None where it is not known.
    """

    run: Path
    config: Config
    step: int | None
    state: Mapping[str, Any]
    held_out: str | None
    adapters: bool
    base_model: str | None


def hub_name(config: Config, given: str | None = None) -> str | None:
    """Name of the base checkpoint on the hub: the given one, or that of the hub's cache where it lies there.

    Raises:
        ConfigError: The given one is no OWNER/NAME.
    """
    if given is not None:
        if HUB_NAME.fullmatch(given) is None:
            raise ConfigError(f"--base-model expects the OWNER/NAME of a repository on the hub, got {given!r}")
        return given
    cached = _CACHED.search(str(getattr(_section(config), "checkpoint", None)))
    return None if cached is None else "/".join(cached.groups())


def write_card(folder: Path, exported: Exported) -> None:
    """Write ``README.md`` and ``recipe.yaml`` into the folder of an export; the base's own card is kept beside them.

    Without the package ``huggingface_hub`` there is no card, since it makes and reads the metadata.
    """
    (folder / RECIPE).write_text(_recipe(exported))
    try:
        from huggingface_hub import ModelCard, ModelCardData
    except ImportError:
        return
    licence = None
    if exported.adapters:
        (folder / CARD).unlink(missing_ok=True)  # an empty form, from peft
    elif (folder / CARD).is_file():
        (folder / CARD).replace(folder / BASE_CARD)
        base = ModelCard((folder / BASE_CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True)
        licence = base.data.license if isinstance(base.data, ModelCardData) else None
    _name_base(folder, exported.base_model)
    rows = list(_evaluations(exported))
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="robotics",
        base_model=exported.base_model,
        license=licence,
        tags=_tags(exported),
        **_measured(exported, rows),
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(exported, rows)}")
    card.save(folder / CARD)


def _section(config: Config) -> Any:
    return getattr(config.policy, config.policy.family, None)


def _tags(exported: Exported) -> list[str]:
    config = exported.config
    family = [config.policy.family] * (":" not in config.policy.family)
    return ["reinforcement-learning", "robotics", "vision-language-action", *family, *(["lora"] * exported.adapters)]


def _measured(exported: Exported, rows: list[tuple[str, int, Success]]) -> dict[str, Any]:
    """The last success as the hub's metadata have it."""
    from huggingface_hub import EvalResult

    if not rows:
        return {}
    _, _, success = rows[-1]
    env = exported.config.env.id
    result = EvalResult(
        task_type="robotics",
        dataset_type=re.sub(r"[^a-z0-9.-]+", "-", env.lower()),
        dataset_name=f"{env}, held-out initial states",
        metric_type="success_rate",
        metric_name="success",
        metric_value=round(success.success, 4),
    )
    return {"model_name": f"{exported.config.policy.family} on {env}", "eval_results": [result]}


def _evaluations(exported: Exported) -> Iterator[tuple[str, int, Success]]:
    """First, best and last evaluation of ``evaluation.csv`` up to the exported step: its meaning, step and success."""
    if exported.step is None:
        return
    table = RunFiles(exported.run).evaluation
    known = [
        (int(step), wilson(int(successes), int(episodes)))
        for step, successes, episodes in zip(*(table[name] for name in ("step", "successes", "episodes")), strict=True)
        if step <= exported.step and episodes >= 1
    ]
    if not known:
        return
    first, last = known[0], known[-1]
    best = max(known, key=lambda row: (row[1].success, row[0]))
    yield "before training", *first
    if best[0] not in (first[0], last[0]):
        yield "the best evaluation, of another checkpoint", *best
    if last[0] != first[0]:
        yield "this policy" if last[0] == exported.step else "the last evaluation, of an earlier step", *last


def _text(exported: Exported, rows: list[tuple[str, int, Success]]) -> str:
    parts = [_head(exported), _success(rows), _states(exported), _cost(exported), _use(exported)]
    return "\n".join(part for part in parts if part)


def _head(exported: Exported) -> str:
    config = exported.config
    what = "Adapters" if exported.adapters else "A policy"
    base = exported.base_model or "not on the hub, or its name there is not known"
    start = f"{config.sft.steps} supervised steps on {config.demos.episodes} demonstrations" if config.sft.steps else ""
    lines = {
        "policy family": config.policy.family,
        "base checkpoint": base if hasattr(_section(config), "checkpoint") else None,
        "trained weights": _trained(config),
        "supervised start": start,
        "method": None if exported.step is None else f"GRPO, `{config.method}`",
        "budget": None
        if exported.step is None or config.selection.name == "none"
        else f"{config.selection.budget} chunks a trajectory",
        "training steps": None
        if exported.step is None
        else f"{exported.step}, each of {config.groups} groups of {config.group_size} rollouts",
        "seed": config.seed,
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in lines.items() if value not in (None, ""))
    return (
        f"# {what} for {config.env.id}\n\n{what} of the family `{config.policy.family}`, trained with pcm_rl. This "
        f"card was made from the run.\n\n| | |\n|---|---|\n{table}"
    )


def _trained(config: Config) -> str | None:
    section = _section(config)
    if config.policy.family == "openvla" and section.adapters is not None and section.lora.rank:
        return "LoRA adapters that others had trained before"
    if config.policy.family == "openvla":
        return f"LoRA adapters of rank {section.lora.rank}" if section.lora.rank else "all"
    return section.train if config.policy.family == "pi0" else None


def _success(rows: list[tuple[str, int, Success]]) -> str:
    if not rows:
        return ""
    table = "".join(
        f"| {meaning} | {step} | {at.success:.1%} | {at.low:.1%} to {at.high:.1%} | {at.successes}/{at.episodes} |\n"
        for meaning, step, at in rows
    )
    return (
        "## Success\n\nOn initial states that were held out from training; actions are sampled. Intervals are Wilson's "
        "at 95 %; they say nothing of other seeds. The best of many evaluations is too high on average.\n\n"
        f"| | step | success | interval | episodes |\n|---|---|---|---|---|\n{table}"
    )


def _states(exported: Exported) -> str:
    config = exported.config
    if exported.held_out is None:
        return ""
    number, tasks = config.env.num_states, config.env.num_tasks
    rule = "There are as many states as wanted: the first ones are held out, and training counts on from there."
    if number is not None:
        rule = (
            f"The {number} states of a task are permuted by the seed: the first {config.env.eval_states} of this order "
            "are held out, the same of every task."
        )
    which = ", ".join(f"{key}: {as_written(values)}" for key, values in config.env.tasks.items())
    count = f"{tasks} task{'s' * (tasks > 1)}{f' ({which})' if which else ''}"
    return f"## Initial states\n\n{count}, {config.env.eval_states} held-out states each: {exported.held_out}. {rule}\n"


def _cost(exported: Exported) -> str:
    summary = exported.state.get("summary", {})
    versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    lines = {
        "environment steps": exported.state.get("env_steps"),
        "chunks through the backward pass": exported.state.get("gradient_chunks"),
        "seconds of all training steps": round(exported.state.get("seconds", 0.0)) or None,
        "hardware": summary.get("hardware"),
        "versions": versions,
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in lines.items() if value not in (None, ""))
    return f"## What it took\n\n| | |\n|---|---|\n{table}" if table else ""


def _use(exported: Exported) -> str:
    """The commands that load the policy, and the recipe that they read."""
    family, section = exported.config.policy.family, _section(exported.config)
    lines = ["hf download OWNER/NAME --local-dir POLICY"]
    option = f"policy.{family}.checkpoint=POLICY"
    if exported.adapters:
        lines += [f"hf download {exported.base_model} --local-dir BASE"] * (exported.base_model is not None)
        option = f"policy.{family}.checkpoint=BASE policy.{family}.adapters=POLICY"
    if hasattr(section, "adapters" if exported.adapters else "checkpoint"):
        train = f"pcm-rl train --config POLICY/{RECIPE} {option} sft.steps=0"
        lines += [
            f"{train} steps=0 name=measured  # success on the held-out states",
            f"{train} name=continued  # trains it further",
        ]
    elif exported.adapters:
        lines.append("# peft loads these adapters on the base: PeftModel.from_pretrained(base, POLICY)")
    commands = "".join(f"{line}\n" for line in lines)
    return (
        f"## Use\n\n`OWNER/NAME` is this repository.\n\n```bash\n{commands}```\n\n"
        f"`{RECIPE}` has the settings of the run:\n\n```yaml\n{_recipe(exported)}```\n"
    )


def _recipe(exported: Exported) -> str:
    """The settings that differ from the defaults, without places on the machine that trained."""
    nested: dict[str, Any] = {}
    head = ""
    for key, (_, value) in differences(Config(), exported.config).items():
        if value is None or _PLACES.fullmatch(key) or (exported.adapters and _FRESH.fullmatch(key)):
            continue
        if _names_a_path(value):
            head += f"# {key} was a path on the machine of the training: give your own\n"
            continue
        place = nested
        *way, last = key.split(".")
        for part in way:
            place = place.setdefault(part, {})
        place[last] = value
    return head + (str(yaml.safe_dump(nested, sort_keys=False)) if nested else "")


def _names_a_path(value: Any) -> bool:
    """Whether a setting, or a part of it, is a path."""
    if isinstance(value, Mapping):
        return any(map(_names_a_path, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_names_a_path, value))
    return isinstance(value, str) and _PATH.match(value) is not None


def _name_base(folder: Path, base_model: str | None) -> None:
    """Have peft's file name the base as it is called on the hub."""
    path = folder / "adapter_config.json"
    if base_model is not None and path.is_file():
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "base_model_name_or_path": base_model}, indent=2) + "\n")
