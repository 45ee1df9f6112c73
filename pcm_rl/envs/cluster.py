"""A Ray cluster: what an environment asks of it, and the connection of this process to it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

LOCAL, AUTO = None, "auto"
SCHEDULING = ("SPREAD", "DEFAULT")
_ANSWER = 10.0  # seconds for a machine to answer at all
_PROBE = """
import json, logging, sys
try:
    import ray
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
except BaseException as error:
    print(json.dumps(" ".join(str(error).split()) or type(error).__name__), flush=True)
    raise SystemExit(1)
ray.shutdown()
"""


class ClusterError(ConnectionError):
    """The cluster cannot be reached, has no room, or its machines do not fit together."""


@dataclass(frozen=True)
class RayCluster:
    """Environments run as Ray actors, on as many machines as the cluster has.

    Args:
        address: `"host:port"` of the head, `"auto"` for the newest Ray of this machine, None for a Ray of
            one's own on this machine, which is ended with the environments and shares nothing out. Where this process
            is connected to a cluster already, that connection is used and stays.
        num_cpus: CPUs that each environment asks of the cluster; a number to share out, not a limit.
        resources: What each asks of a cluster besides, such as `{"simulators": 1}`.
        scheduling: Ray's strategy: `"SPREAD"` over the machines, or `"DEFAULT"`, which fills one after the other.
        timeout: Seconds for the cluster to answer, and to give each environment a place.
        log: Show what Ray and the environments print.

    Raises:
        ValueError: A value does not fit.
    """

    address: str | None = LOCAL
    num_cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    scheduling: str = "SPREAD"
    timeout: float = 120.0
    log: bool = False

    def __post_init__(self) -> None:
        if self.scheduling not in SCHEDULING:
            raise ValueError(f"scheduling is {self.scheduling!r}; expected one of {', '.join(SCHEDULING)}")
        wrong = [value for value in (self.num_cpus, *self.resources.values()) if not 0 <= value < float("inf")]
        if wrong or not 0 < self.timeout < float("inf"):
            raise ValueError(
                f"num_cpus is {self.num_cpus}, resources {dict(self.resources)}, timeout {self.timeout}; expected at "
                "least 0 of each, and more than 0 seconds"
            )
        if self.address not in (LOCAL, AUTO):
            _host_and_port(self.address)

    def wants(self) -> dict[str, Any]:
        """What each environment asks for, as options of an actor."""
        return {"num_cpus": self.num_cpus, "resources": dict(self.resources), "scheduling_strategy": self.scheduling}


class Connection:
    """This process's connection to a cluster: made by the first who needs it, ended after the last.

    Attributes:
        users: How many vectors of environments need it.
        ours: Whether it was made here: somebody else's is never ended.
        alone: Whether it is to a Ray that was started for it.
    """

    def __init__(self) -> None:
        self.users, self.ours, self.alone = 0, False, False

    def open(self, cluster: RayCluster) -> None:
        """Connects, unless this process is connected.

        Raises:
            ImportError: Ray is not installed.
            ClusterError: The cluster cannot be reached in time.
        """
        ray = import_ray()
        if ray.is_initialized():
            _refuse_other(ray.get_runtime_context().gcs_address, cluster.address)
        else:
            if cluster.address is not LOCAL:
                _probe(cluster.address, cluster.timeout)
            with _signals_kept():
                _connect(ray, cluster)
            self.users, self.ours, self.alone = 0, True, cluster.address is LOCAL
        self.users += 1

    def close(self) -> None:
        """Ends the connection if it is nobody else's; with it a Ray of our own."""
        self.users -= 1
        ray = sys.modules["ray"]
        if self.users == 0 and self.ours and ray.is_initialized():
            self.ours = self.alone = False
            ray.shutdown()


CONNECTION = Connection()


def import_ray() -> Any:
    """The module.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("environments on Ray need the package ray; run: pip install 'pcm_rl[ray]'") from error
    return ray


def _connect(ray: Any, cluster: RayCluster) -> None:
    quiet = {"log_to_driver": cluster.log, "logging_level": logging.INFO if cluster.log else logging.ERROR}
    if cluster.address is LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=1, include_dashboard=False, **quiet)
    else:
        ray.init(address=cluster.address, **quiet)
    worker: Any = sys.modules.get("ray._private.worker")
    if not cluster.log and hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = False  # Ray prints deaths of actors whatever is asked; we have a line of our own


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM over, at which a run is saved."""
    main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGTERM) if main else None
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _host_and_port(address: str | None) -> tuple[str, int]:
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"address is {address!r}; expected host:port of the head, such as 10.0.0.1:6379, or auto on a machine of "
            "the cluster"
        )
    return host.strip("[]"), int(port)


def _refuse_other(connected: str, address: str | None) -> None:
    if address in (LOCAL, AUTO):
        return
    (host, port), (other, other_port) = _host_and_port(address), _host_and_port(connected)
    with contextlib.suppress(OSError):  # a name that nobody knows is another one
        found = socket.gethostbyname(host)
        if port == other_port and (found == socket.gethostbyname(other) or found.startswith("127.")):
            return
    raise ClusterError(f"this process is connected to the Ray cluster at {connected} already, not to {address}")


def _probe(address: str | None, timeout: float) -> None:
    """Connect in a process of its own first: where nobody answers, Ray tries for minutes and then ends the process."""
    start = "run `ray start --head` on the head, and `ray start --address=HEAD:6379` on the others, and on this machine"
    if address != AUTO:
        try:
            socket.create_connection(_host_and_port(address), min(_ANSWER, timeout)).close()
        except OSError as error:
            raise ClusterError(f"no Ray cluster answers at {address} ({error}); {start}") from error
    command = [sys.executable, "-c", _PROBE, str(address)]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"no Ray cluster answers at {address} within {timeout:g} s; {start}") from None
    if tried.returncode:
        said = tried.stdout.strip().splitlines() or ['"it ended without a word"']
        raise ClusterError(f"cannot join the Ray cluster at {address}: {_unquoted(said[-1])}; {start}")


def _unquoted(line: str) -> str:
    try:
        return str(json.loads(line))
    except ValueError:
        return line
