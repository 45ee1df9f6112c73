"""Scalars of a run for people's own trackers: TensorBoard, Weights & Biases, MLflow and Trackio.

Each is used through its own library, with the settings that the library itself reads (addresses, keys, offline mode).
What nobody asked for is not sent: usage statistics of MLflow and error reports of wandb are off unless the user's
environment says otherwise.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pcm_rl.config import Config, ConfigError
from pcm_rl.config.written import as_written

PROJECT = "pcm_rl"  # of wandb and Trackio, experiment of MLflow, where the environment names none
Outcome = Literal["finished", "interrupted", "failed"]

_MLFLOW_LONGEST = 6000  # characters of a parameter
_MLFLOW_MOST = 100  # parameters of a message


@dataclass(frozen=True)
class LoggedRun:
    """The run as a tracker shows it.

    Attributes:
        name: For people, such as ``runs/reach-pcm-seed0``; several runs may have the same.
        id: Of this run alone; a resumed run has it again.
        folder: The run folder.
        settings: The configuration, nested; what the recipe takes from the environment stays as the recipe has it.
    """

    name: str
    id: str
    folder: Path
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, config: Config, run_id: str) -> LoggedRun:
        """The run of a configuration; a comparison's runs have its name before their own."""
        place = Path(config.run_dir)
        name = (Path(place.name) / config.folder.relative_to(place)).as_posix()
        return cls(name, run_id, config.folder, as_written(config))


class Logger(Protocol):
    """An open run in a tracker."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Send finite or infinite scalars of a training step."""

    def close(self, outcome: Outcome) -> None:
        """End the run; nothing may be sent after it."""


def open_logger(name: str, run: LoggedRun) -> Logger:
    """Begin the run in a tracker, or go on with it where the tracker knows its id.

    Raises:
        ConfigError: It refuses, such as a server that does not answer or a missing login.
    """
    try:
        return _OPEN[name](run)
    except Exception as error:  # of whatever kind the library has
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"logger={name} cannot begin: {reason}; mend this, or give logger=none") from error


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run.

    Args:
        run: The run.
    """

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(run.folder / "tensorboard"))

    def forget_after(self, step: int) -> None:
        """Leave out the later steps of older event files: they are done again after a resume."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = Event(session_log=SessionLog(status=SessionLog.START))
        self.writer.file_writer.add_event(start, step=step + 1)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """See :class:`Logger`."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, global_step=step)

    def close(self, outcome: Outcome) -> None:
        """See :class:`Logger`; event files have no place for the outcome."""
        self.writer.close()


class Wandb:
    """Weights & Biases; ``WANDB_MODE=offline`` writes into the run folder only.

    Its own step only rises, and an evaluation of a step may come after a resume: the scalar ``step`` is the axis.

    Args:
        run: The run.
    """

    def __init__(self, run: LoggedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            name=run.name,
            id=run.id,
            resume="allow",
        )
        self.run.config.update(dict(run.settings), allow_val_change=True)
        self.run.define_metric("*", step_metric="step")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """See :class:`Logger`."""
        self.run.log({"step": step, **scalars})

    def close(self, outcome: Outcome) -> None:
        """See :class:`Logger`; what is not ``finished`` is shown as failed."""
        self.run.finish(exit_code=int(outcome != "finished"))


class MLflow:
    """MLflow, at ``MLFLOW_TRACKING_URI`` or where the library writes without it.

    Args:
        run: The run.
    """

    def __init__(self, run: LoggedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient, get_tracking_uri

        with _alone_at(get_tracking_uri()):
            self.client = MlflowClient()
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        found = self.client.search_runs([experiment], f"tags.`{PROJECT}.run` = '{run.id}'", max_results=1)
        if found:
            self.id: str = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            self.id = self.client.create_run(experiment, tags={f"{PROJECT}.run": run.id}, run_name=run.name).info.run_id
        self._write_settings(run.settings, dict(found[0].data.params) if found else {})

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self.client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:  # another run was faster
                known = self.client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)

    def _write_settings(self, settings: Mapping[str, Any], before: Mapping[str, str]) -> None:
        """As parameters; these never change, so what a resumed run has changed becomes a tag."""
        from mlflow.entities import Param, RunTag

        values = {key: str(value)[:_MLFLOW_LONGEST] for key, value in _flat(settings)}
        new = [Param(key, value) for key, value in values.items() if key not in before]
        for start in range(0, len(new), _MLFLOW_MOST):
            self.client.log_batch(self.id, params=new[start : start + _MLFLOW_MOST])
        changed = [RunTag(f"changed.{key}", value) for key, value in values.items() if before.get(key, value) != value]
        if changed:
            self.client.log_batch(self.id, tags=changed)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """See :class:`Logger`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, [Metric(name, value, now, step) for name, value in scalars.items()])

    def close(self, outcome: Outcome) -> None:
        """See :class:`Logger`."""
        status = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[outcome]
        self.client.set_terminated(self.id, status)


class Trackio:
    """Trackio, whose data base is a local folder unless ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL`` is set.

    It finds a run by its name, so the name gets the beginning of the id.

    Args:
        run: The run.
    """

    def __init__(self, run: LoggedRun) -> None:
        import trackio

        self.run = trackio.init(
            project=PROJECT,
            name=f"{run.name}-{run.id[:8]}",
            config=dict(run.settings),
            resume="allow",
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """See :class:`Logger`."""
        self.run.log(dict(scalars), step=step)

    def close(self, outcome: Outcome) -> None:
        """See :class:`Logger`; Trackio has no place for the outcome."""
        import trackio

        trackio.finish()


_OPEN: Mapping[str, Callable[[LoggedRun], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}


@contextlib.contextmanager
def _alone_at(address: str) -> Iterator[None]:
    """Within it no other run makes the tables of a new MLflow data base, which goes wrong for two at once."""
    if not address.startswith("sqlite:///"):
        yield
        return
    with open(f"{address.removeprefix('sqlite:///')}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys, as on the command line."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
