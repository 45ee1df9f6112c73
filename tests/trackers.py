"""What a tracker's package has kept of a run, read with the package, for tests."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Points = list[tuple[int, float]]
BLOCK, HEADER = 32768, 7


@dataclass
class Kept:
    """A run in a tracker: ``scalars[name]`` are pairs of step and value, in the order in which they came."""

    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    scalars: dict[str, Points] = field(default_factory=lambda: defaultdict(list))
    outcome: str | None = None


def read_wandb(folder: Path, run_id: str) -> Kept:
    """The files of an offline run: a resumed one has several."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service writes the last records a moment after the end of a run
    kept = Kept()
    for path in sorted(folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb")):
        for data in _wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                kept.name = record.run.display_name
                assert (record.run.run_id, record.run.project) == (run_id, "pcm_rl")
            for config in (record.run.config, record.config):
                kept.settings |= {item.key: json.loads(item.value_json) for item in config.update}
            if kind == "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for name, value in row.items():
                    if name != "step" and not name.startswith("_"):
                        kept.scalars[name].append((row["step"], value))
            if kind == "exit":
                kept.outcome = "finished" if record.exit.exit_code == 0 else "failed"
    return kept


def _wandb_records(content: bytes) -> list[bytes]:
    """Records of a file in LevelDB's log format: blocks, in which a record has pieces (1 whole, 2 first, 4 last)."""
    records, pieces, place = list[bytes](), b"", HEADER
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + HEADER])
        pieces += content[place + HEADER : place + HEADER + length]
        if kind in (1, 4):
            records.append(pieces)
            pieces = b""
        place += HEADER + length
    return records


def read_mlflow(folder: Path, run_id: str) -> Kept:
    """From the data base that ``MLFLOW_TRACKING_URI`` names."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("pcm_rl").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`pcm_rl.run` = '{run_id}'")
    params = {key: json.loads(value) for key, value in run.data.params.items()}
    changed = {key for key in run.data.tags if key.startswith("changed.")}
    assert changed in (set(), {"changed.selection.budget"})
    points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    scalars = {name: [(point.step, point.value) for point in history] for name, history in points.items()}
    return Kept(run.info.run_name, params, scalars, {"FINISHED": "finished"}.get(run.info.status, "failed"))


def read_trackio(folder: Path, run_id: str) -> Kept:
    """From its data base."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = (run for run in trackio.Api().runs("pcm_rl") if run.name.endswith(run_id[:8]))
    kept = Kept(run.name, run.config)
    for row in SQLiteStorage.get_logs("pcm_rl", run.name):
        for name, value in row.items():
            if "/" in name:
                kept.scalars[name].append((row["step"], value))
    return kept


READERS = {"wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}
