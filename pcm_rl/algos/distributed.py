"""Training on several processes, one a GPU, started with ``torchrun``; alone, everything here is an identity.

No ``DistributedDataParallel``: it wants the same number of backward passes on every process and averages their
gradients as if all had seen equally many rows, while here the shares of a minibatch are uneven (3 rows on 2 processes,
or none on one) and only a small part of the policy may be trained. One sum after a minibatch's last backward pass, of
gradients that are already divided by the number of rows of *all* processes, is exact, and it is one message.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor, nn

from pcm_rl.algos.wire import Header, describe_rows, join_rows, rows_to_fill, tensors_of
from pcm_rl.config import Config, ConfigError

# A process that ends takes its connections with it, which the others notice at once. This is for one that hangs, and
# longer than any wait there is for a process that rolls out, records demonstrations or writes.
TIMEOUT = timedelta(hours=1)
PIECE = 2**27  # elements of a message: 1 GB of int64, since images of a whole evaluation exceed 2 GB


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, and which of them this is.

    All of them must make the same calls in the same order.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def voice(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say`` for the first process, silence for the others."""
        return say if self.first else lambda line: None

    def share(self, items: Tensor) -> Tensor:
        """This process's part of ``items [n]``: consecutive ones, at most one more than any other process's."""
        return items.tensor_split(self.size)[self.rank]

    def draw_apart(self, *entropy: int) -> None:
        """Seed torch's generators from ``entropy`` and the rank, so that no two processes sample the same actions.

        The first goes on with the random numbers that it has, which are those of a run alone and of its checkpoints.
        """
        if not self.first:
            torch.manual_seed(int(np.random.SeedSequence([*entropy, self.rank]).generate_state(1, np.uint64)[0]))

    def gather_json(self, value: Any) -> list[Any]:
        """What every process calls this with, in the order of ranks: anything that JSON keeps."""
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

    def rows_of_first(self, make: Callable[[], TensorDict]) -> TensorDict:
        """Rows that only the first process makes, and all get."""
        if self.size == 1:
            return make()
        rows = make() if self.first else TensorDict({}, batch_size=[0])
        return self._rows_from(0, rows, describe_rows(rows))

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over processes, in one message; they are then the same bit for bit.

        A parameter without a gradient on some process counts as zero there, and keeps none if it has none anywhere.
        """
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
        flat = torch.cat([has, *(gradient.flatten() for gradient in gradients)])  # float32 at least, because of `has`
        dist.all_reduce(flat)
        has, *sums = flat.split([len(parameters), *(p.numel() for p in parameters)])
        for parameter, total, anywhere in zip(parameters, sums, has.tolist(), strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype) if anywhere else None

    def equalise(self, module: nn.Module) -> None:
        """Give every process the first one's trained parameters."""
        for parameter in self._trained(module):
            dist.broadcast(parameter.detach(), 0)

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
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        found = self.gather_json(digest.hexdigest())
        if len(set(found)) > 1:
            other = next(rank for rank, one in enumerate(found) if one != found[0])
            raise RuntimeError(
                f"processes 0 and {other} have come to different {what}, and none was saved; they must run the same "
                "versions on the same kind of processor and GPU. Continue from the last checkpoint with --resume"
            )

    def _trained(self, module: nn.Module) -> list[nn.Parameter]:
        return [p for p in module.parameters() if p.requires_grad] if self.size > 1 else []

    def _json_from(self, source: int, value: Any) -> Any:
        data = json.dumps(value).encode() if self.rank == source else b""
        length = torch.tensor([len(data)])
        dist.broadcast(length, source)
        buffer = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == source:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(buffer, source)
        return json.loads(bytes(buffer.numpy()))

    def _rows_from(self, source: int, rows: TensorDict, header: Header) -> TensorDict:
        header = self._json_from(source, header)
        rows = rows if self.rank == source else rows_to_fill(header)
        pieces = [piece for tensor in tensors_of(rows) for piece in tensor.view(-1).split(PIECE) if len(piece)]
        for piece in pieces:
            dist.broadcast(piece, source)
        return rows


ALONE = Ranks()


@contextlib.contextmanager
def joined(config: Config, timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """Meet the other processes that ``torchrun`` has started with this one; without it, be alone.

    CPU tensors travel by gloo, those on GPUs by NCCL, and ``device="cuda"`` is from here on the GPU of this process. A
    process group that the caller has made is used and left as it is. After an error the group is not taken apart, since
    the others may be waiting in it: the process should end.

    Args:
        config: What is going to be trained.
        timeout: How long a process waits for another one in an exchange before it gives up with an error.

    Raises:
        ConfigError: If there is too little of something to be dealt out, or no GPU for this process.
    """
    size = dist.get_world_size() if dist.is_initialized() else launched()
    check_deal(config, size)
    if size == 1 or dist.is_initialized():
        yield Ranks(dist.get_rank(), size) if size > 1 else ALONE
        return
    on_gpu = torch.device(config.device).type == "cuda"
    if on_gpu:
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timeout)
    ranks = Ranks(dist.get_rank(), size)
    yield ranks
    ranks.gather_json(None)  # nobody leaves while another still works
    dist.destroy_process_group()


def launched() -> int:
    """How many processes ``torchrun`` has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


def check_deal(config: Config, size: int) -> None:
    """Refuse a configuration that cannot be dealt out to ``size`` processes.

    Raises:
        ConfigError: If a process would be left without a group or an episode, or all would use one GPU.
    """
    dealt = {"groups": config.groups, "eval_episodes": config.eval_episodes}
    if config.sft.target is not None:
        dealt["sft.check_episodes"] = config.sft.check_episodes
    for key, number in dealt.items():
        if number < size:
            raise ConfigError(f"{key}={number} cannot be dealt to {size} processes; give at least {key}={size}")
    if size > 1 and torch.device(config.device).index is not None:
        raise ConfigError(f"device={config.device} is one GPU for all {size} processes; give device=cuda")


def _take_gpu(local_rank: int) -> None:
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine finds {torch.cuda.device_count()} GPUs; start as many processes as "
            "there are GPUs (torchrun --nproc-per-node), or give device=cpu"
        )
    torch.cuda.set_device(local_rank)


class _Ranked(Protocol):
    ranks: Ranks


Self = TypeVar("Self", bound=_Ranked)
P = ParamSpec("P")


def on_first_rank(method: Callable[Concatenate[Self, P], None]) -> Callable[Concatenate[Self, P], None]:
    """Makes a method one that only the first process does; its body must not wait for the others."""

    @functools.wraps(method)
    def wrapped(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.ranks.first:
            method(self, *args, **kwargs)

    return wrapped
