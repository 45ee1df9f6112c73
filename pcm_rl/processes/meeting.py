"""Where the processes of ``torchrun`` leave words for each other before they are a group."""

from __future__ import annotations

import functools
import os
import time
import uuid
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pcm_rl.processes.ranks import LostProcessError, answered

# For all to have started: before that there is no connection whose end could be noticed.
START_TIMEOUT = timedelta(minutes=10)


def launched() -> int:
    """How many processes ``torchrun`` has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


@functools.cache
def meeting_point() -> Store:
    """The store of this start: ``torchrun`` keeps one store, with what the processes before a restart have written.

    The first process returns once all have come.

    Raises:
        LostProcessError: Some have not, within ten minutes.
    """
    rank, size = int(os.environ["RANK"]), launched()
    with answered():
        store, _, _ = next(rendezvous("env://", timeout=START_TIMEOUT))
        return PrefixStore(enter(store, rank) if rank else welcome(store, size), store)


def enter(store: Store, rank: int) -> str:
    """Come in as one of the others: the name of this start, which the first process tells under a fresh key."""
    visitor = uuid.uuid4().hex
    store.set(f"visitor/{rank}", visitor)
    name: str = store.get(f"welcome/{visitor}").decode()  # waits
    store.set(f"entered/{name}/{rank}", "")
    return name


def welcome(store: Store, size: int) -> str:
    """Name this start, and tell the name to everyone who comes, until all ``size`` are there.

    Visitors that an earlier start has left in the store are told too, and nobody hears it.
    """
    name, end = uuid.uuid4().hex, time.monotonic() + START_TIMEOUT.total_seconds()
    while missing := [rank for rank in range(1, size) if not store.check([f"entered/{name}/{rank}"])]:
        for rank in missing:
            if store.check([f"visitor/{rank}"]):
                store.set(f"welcome/{store.get(f'visitor/{rank}').decode()}", name)
        if time.monotonic() > end:
            names = ", ".join(map(str, missing))
            raise LostProcessError(f"of {size} processes these did not start: {names}; their own output may say why")
        time.sleep(0.05)
    return name
