"""``pcm-rl check``: every check in one line, as soon as it is done."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from pcm_rl.checks.attempt import attempt, described
from pcm_rl.checks.machine import machine_findings
from pcm_rl.checks.recipe import recipe_findings
from pcm_rl.checks.rendering import Backends
from pcm_rl.config import ConfigError, load_config
from pcm_rl.rollouts.first_look import Finding

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def check(recipe: str | None, overrides: Sequence[str] = (), *, as_json: bool = False) -> None:
    """Print what was found: about the machine, and about a recipe where one is given.

    Args:
        recipe: YAML file.
        overrides: ``key=value`` changes; with any, the defaults are a recipe, too.
        as_json: One JSON list at the end instead of lines.

    Raises:
        ConfigError: At the end, if a check failed.
    """
    found = []
    show: Callable[[Finding], None] = (lambda finding: None) if as_json else _printer()
    # what an environment prints is no part of a list
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        for finding in _never_raising(findings(recipe, overrides)):
            found.append(finding)
            show(finding)
    if as_json:
        print(json.dumps([finding.as_dict() for finding in found], indent=1))
    if failed := [finding.name for finding in found if finding.level == "fail"]:
        raise ConfigError(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}")


def _never_raising(found: Iterator[Finding]) -> Iterator[Finding]:
    try:
        yield from found
    except Exception as error:  # of a part that no check foresaw
        yield Finding("check", "fail", f"ended early: {described(error)}")


def findings(recipe: str | None, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """The checks, one after the other."""
    if recipe is None and not overrides:
        yield from machine_findings()
        backends = Backends()
        try:
            yield backends.finding()
        finally:
            backends.close()
        return
    config = yield from attempt("recipe", lambda: load_config(recipe, overrides))
    if config is None:
        yield from machine_findings()
        return
    yield Finding("recipe", "ok", f"{recipe or 'the defaults'}: {config.env.id}, {config.method}")
    yield from machine_findings(config.device)
    yield from recipe_findings(config)


def _printer() -> Callable[[Finding], None]:
    console = Console(highlight=False)

    def show(finding: Finding) -> None:
        line = Text.assemble((f"{finding.level:<5}", _STYLES[finding.level]), f"{finding.name:<16}", finding.text)
        console.print(line, soft_wrap=True)

    return show
