"""How to train, as the first process says it: only that one needs to have the recipe, or the folder of the run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pcm_rl.config import Config, ConfigError, config_text, load_config
from pcm_rl.processes.meeting import launched, meeting_point
from pcm_rl.processes.ranks import answered

_KEY = "settings"


def settings_of_first(make: Callable[[], tuple[Config, bool]]) -> tuple[Config, bool]:
    """The configuration and whether a run goes on, as the first of the processes of ``torchrun`` finds them.

    Files may lie on its machine alone. Without ``torchrun`` this is ``make()``.

    Args:
        make: Reads recipe, overrides and the run's folder; called on the first process only.

    Raises:
        LostProcessError: On the other processes if ``make`` has failed on the first.
    """
    if launched() == 1:
        return make()
    if os.environ["RANK"] == "0":
        config, resume = make()
        meeting_point().set(_KEY, json.dumps({"config": config_text(config), "resume": resume}))
        return config, resume
    with answered():
        told = json.loads(meeting_point().get(_KEY))  # waits
    return _read(told["config"]), told["resume"]


def _read(text: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text)
        try:
            return load_config(path)
        except ConfigError as error:  # such as a variable of the environment that is not set here
            raise ConfigError(f"process {os.environ['RANK']} cannot take the settings of the first: {error}") from error
