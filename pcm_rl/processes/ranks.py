"""Training on several processes, one per GPU, started with ``torchrun``; with one process all this is an identity.

No ``DistributedDataParallel``: it needs the same number of backward passes on every process and averages their
gradients as if all had equally many rows. Here the shares of a minibatch are uneven (3 rows on 2 processes, or no row
on one), and only a small part of the policy may be trained. Gradients are divided by the number of rows of *all*
processes and summed once, in one message, after a minibatch's last backward pass: this is exact.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from tensordict import NestedKey, TensorDict
from torch import Tensor, nn

from pcm_rl.processes.exchange import Complete, exchange
from pcm_rl.processes.messages import Header, describe_rows, join_rows, rows_to_fill, tensors_of

PIECE = 2**27  # elements of a message: 1 GB of int64, since images of a whole evaluation exceed 2 GB


class LostProcessError(ConnectionError):
    """An exchange with the other processes has failed."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, and the number of this one.

    All of them must make the same calls in the same order.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def voice(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say`` for the first process, a function that does nothing for the others."""
        return say if self.first else lambda line: None

    def share(self, items: Tensor) -> Tensor:
        """This process's part of ``items [n]``: consecutive ones, at most one more than any other process's."""
        return items.tensor_split(self.size)[self.rank]

    def draw_apart(self, *entropy: int) -> None:
        """Seed torch's generators from ``entropy`` and the rank, so that no two processes sample the same actions.

        The first process keeps its random numbers, which are those of a run with one process and of its checkpoints.
        """
        if not self.first:
            torch.manual_seed(int(np.random.SeedSequence([*entropy, self.rank]).generate_state(1, np.uint64)[0]))

    def gather_json(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of ranks: anything that JSON keeps."""
        return [value] if self.size == 1 else [self._json_from(source, value) for source in range(self.size)]

    def gather_rows(self, rows: TensorDict) -> TensorDict:
        """``rows [m]`` of every process, in the order of ranks: ``[M]``, on the CPU as they are.

        Args:
            rows: Tensors and texts, the same entries everywhere; the number of rows may differ and may be 0.

        Raises:
            TypeError: If an entry is neither a tensor nor a text.
            ValueError: If the entries differ.
        """
        if self.size == 1:
            return rows
        header = describe_rows(rows)
        return join_rows([self._rows_from(source, rows, header) for source in range(self.size)])

    def exchange(self, rows: TensorDict, also: tuple[NestedKey, ...] = ()) -> tuple[TensorDict, Complete]:
        """The rows of all processes without their observations, and the function that adds them to kept rows.

        See :func:`pcm_rl.processes.exchange.exchange`.
        """
        return exchange(self, rows, also)

    def rows_of_first(self, make: Callable[[], TensorDict]) -> TensorDict:
        """Rows that the first process makes and all get."""
        if self.size == 1:
            return make()
        rows = make() if self.first else TensorDict({}, batch_size=[0])
        return self._rows_from(0, rows, describe_rows(rows))

    def send(self, tensor: Tensor, source: int = 0) -> None:
        """Overwrite ``tensor`` with that of one process, on all others.

        Raises:
            LostProcessError: Another process has ended, or does not answer in time.
        """
        with answered():
            dist.broadcast(tensor, source)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over processes, in one message; they are then the same bit for bit.

        A gradient that a process lacks counts as zero; a parameter without a gradient on all processes gets none.
        """
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
        flat = torch.cat([has, *(gradient.flatten() for gradient in gradients)])  # float32 at least, because of `has`
        with answered():
            dist.all_reduce(flat)
        has, *sums = flat.split([len(parameters), *(p.numel() for p in parameters)])
        for parameter, total, anywhere in zip(parameters, sums, has.tolist(), strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype) if anywhere else None

    def equalise(self, module: nn.Module) -> None:
        """Give every process the first one's trained parameters."""
        for parameter in self._trained(module):
            self.send(parameter.detach())

    def check_parameters(self, module: nn.Module) -> None:
        """:meth:`check_same` of the trained parameters."""
        self.check_same("parameters", self._trained(module))

    def check_same(self, what: str, tensors: Iterable[Tensor]) -> None:
        """Raise unless all processes have the same ``tensors``, bit for bit.

        Raises:
            RuntimeError: If they differ.
        """
        if self.size == 1:
            return
        hasher = hashlib.sha256()
        for tensor in tensors:
            hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        digests = self.gather_json(hasher.hexdigest())
        if len(set(digests)) > 1:
            other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
            raise RuntimeError(
                f"processes 0 and {other} have come to different {what}, and none was saved; they must run the same "
                "versions on the same kind of processor and GPU. Continue from the last checkpoint with --resume"
            )

    def _trained(self, module: nn.Module) -> list[nn.Parameter]:
        return [p for p in module.parameters() if p.requires_grad] if self.size > 1 else []

    def _json_from(self, source: int, value: Any) -> Any:
        data = json.dumps(value).encode() if self.rank == source else b""
        length = torch.tensor([len(data)])
        self.send(length, source)
        buffer = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == source:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self.send(buffer, source)
        return json.loads(bytes(buffer.numpy()))

    def _rows_from(self, source: int, rows: TensorDict, header: Header) -> TensorDict:
        header = self._json_from(source, header)
        rows = rows if self.rank == source else rows_to_fill(header)
        pieces = [piece for tensor in tensors_of(rows) for piece in tensor.view(-1).split(PIECE) if len(piece)]
        for piece in pieces:
            self.send(piece, source)
        return rows


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Makes a ``LostProcessError`` of what PyTorch raises where another process does not answer."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's and NCCL's
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise LostProcessError(f"another process has ended, or does not answer ({reason})") from error


ALONE = Ranks()


class _Ranked(Protocol):
    ranks: Ranks


Self = TypeVar("Self", bound=_Ranked)
P = ParamSpec("P")


def on_first_rank(method: Callable[Concatenate[Self, P], None]) -> Callable[Concatenate[Self, P], None]:
    """Makes a method run on the first process only; its body must not wait for the others."""

    @functools.wraps(method)
    def wrapped(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.ranks.first:
            method(self, *args, **kwargs)

    return wrapped
