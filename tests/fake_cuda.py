"""A CUDA device that is not there: run code with device="cuda" on a machine without a GPU, and find its device bugs.

A tensor on the fake device says ``cuda:0``, has CUDA's dispatch keys (so CUDA's autocast lists apply, which differ from
the CPU's) and keeps its numbers on the CPU. As a GPU it refuses: operations of ``cuda`` and ``cpu`` tensors
(0-dimensional ones apart, and CPU indices of a CUDA tensor), a CPU generator for a CUDA draw, ``.numpy()``. CUDA draws
leave the CPU's random state alone. It counts copies between host and device, and what makes the host wait: ``.item()``,
``bool()``, ``nonzero``, a boolean index, ``.cpu()``.

    python tests/fake_cuda.py script.py arguments
    python tests/fake_cuda.py -m pcm_rl.cli train device=cuda

    with fake_cuda() as log:  # in a test, around everything that is to see the device
        ...
        print(log.report())  # waits and copies by the line of code that caused them

``fake_cuda(devices=2)`` has two of them: ``cuda`` means the current one, each has its own memory and random state, and
an operation on tensors of both is refused. ``fake_cuda(meta=True)`` keeps no numbers: a 7B costs nothing, operations
and saved tensors can be counted, ``.item()`` fails. ``torch.cuda.memory_allocated`` and its peak are the sum of the
storages that live (no allocator's gaps, no workspaces). Not simulated: streams and races, speed, kernels (numbers are
the CPU's), NCCL, torch.compile, CUDA graphs. It rests on private parts of torch.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import runpy
import sys
import traceback
import weakref
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
MEMORY = 79 * 2**30  # of an H100
_KERNELS = {
    one: torch._decomp.decomposition_table[one]
    for one in (aten._fused_rms_norm.default, aten._fused_rms_norm_backward.default)
    if one in torch._decomp.decomposition_table
}  # kernels that a CPU does not have
COPIES = (aten._to_copy.default, aten.copy_.default, aten.copy.default)
INDEXED = (
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
)
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "equal",
    "is_nonzero",
    "histc",
}  # and repeat_interleave.Tensor without output_size, a boolean index, a copy to the host
SCALARS_TOO = {
    "where",
    "masked_fill",
    "masked_fill_",
    "index_put_",
    "index_put",
    "fill_",
    "full_like",
    "clamp",
    "clamp_min",
    "clamp_max",
    "div_",
    "lerp",
    "_foreach_mul_",
    "_foreach_mul",
    "_foreach_div_",
    "_foreach_lerp_",
    "_fused_adamw_",
    "_fused_adam_",
}  # take 0-dim CPU tensors


class DeviceError(RuntimeError):
    """What would fail on a GPU."""


class FakeCuda(torch.Tensor):
    """A tensor that says ``cuda:i``; ``elem`` has its numbers, on the CPU (or on meta)."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor, index: int) -> FakeCuda:
        layout = {"strides": elem.stride(), "storage_offset": elem.storage_offset(), "dtype": elem.dtype}
        on = torch.device("cuda", index)
        self = torch.Tensor._make_wrapper_subclass(cls, elem.size(), **layout, device=on)
        self.elem = elem
        if _active is not None:
            _active.cards[index].hold(elem.untyped_storage())
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FakeCuda({self.elem!r})"

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: FakeCuda) -> None:
        if not isinstance(value, FakeCuda):
            raise DeviceError("a parameter on the device is given numbers that are elsewhere")
        torch.Tensor.data.__set__(self, value)
        self.elem = value.elem

    def untyped_storage(self) -> Any:
        return self.elem.untyped_storage()

    def __tensor_flatten__(self) -> tuple[list[str], int]:
        return ["elem"], self.device.index

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], index: int, *_: Any) -> FakeCuda:
        return FakeCuda(inner["elem"], index)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _active is None:
            raise RuntimeError("a fake CUDA tensor has left fake_cuda()")
        return _active.run(func, args, kwargs or {})


class Log:
    """What happened: ``counts[kind, where]`` with ``kind`` one of sync, h2d, d2h; ``bytes[kind]``; ``ops`` by name."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.ops: collections.Counter[str] = collections.Counter()

    def add(self, kind: str, func: Any, size: int = 0) -> None:
        self.counts[kind, f"{_where()} [{func._schema.name.split('::')[1]}]"] += 1
        self.bytes[kind] += size

    def total(self, kind: str) -> int:
        return sum(n for (k, _), n in self.counts.items() if k == kind)

    def report(self) -> str:
        lines = [f"{k}: {self.total(k)} ({self.bytes[k] / 1e6:.3f} MB)" for k in ("sync", "h2d", "d2h")] + [
            f"operations: {sum(self.ops.values())}"
        ]
        return "\n".join(lines + [f"  {n:6d} {k:4s} {where}" for (k, where), n in self.counts.most_common()])


def _where() -> str:
    """The innermost two lines of code outside torch and this file; of site-packages only if there is nothing else."""
    stack = [
        f
        for f in traceback.extract_stack()
        if f.filename != __file__ and f"torch{os.sep}" not in f.filename.split("site-packages" + os.sep)[-1][:6]
    ]
    mine = [
        f
        for f in stack
        if "site-packages" not in f.filename
        and "<" not in f.filename
        and f"{os.sep}lib{os.sep}python" not in f.filename
    ] or stack
    return " < ".join(f"{os.sep.join(f.filename.split(os.sep)[-2:])}:{f.lineno}" for f in reversed(mine[-2:]))


class _Card:
    """Memory and random state of one device."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(torch.initial_seed() % 2**63).get_state()
        self.live: dict[int, int] = {}
        self.memory = self.peak = 0

    def seed(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(int(seed) % 2**63).get_state()

    def hold(self, storage: Any) -> None:
        """Count a storage until nobody has it any more."""
        if (key := storage._cdata) not in self.live:
            self.live[key] = storage.nbytes()
            self.memory += storage.nbytes()
            self.peak = max(self.peak, self.memory)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.memory -= self.live.pop(key, 0)


class _Device:
    """The dispatcher behind both the tensors and the mode."""

    def __init__(self, log: Log, meta: bool, devices: int) -> None:
        self.log, self.meta, self.hook, self.asked = log, meta, None, None
        self.cards = [_Card() for _ in range(devices)]
        self.current = 0

    def index(self, device: Any = None) -> int:
        """Number of a device; the current one where none is named."""
        index = device if isinstance(device, int) else None if device is None else torch.device(device).index
        index = self.current if index is None else index
        if index >= len(self.cards):
            raise DeviceError(f"cuda:{index}: there are {len(self.cards)} devices")
        return index

    def card(self, device: Any = None) -> _Card:
        return self.cards[self.index(device)]

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        name = func._schema.name.split("::")[1].split(".")[0]
        device = kwargs.get("device")
        target = None if device is None else torch.device(device).type
        here = any(isinstance(x, FakeCuda) for x in flat)
        if not here and target != "cuda":
            return func(*args, **kwargs)
        self.log.ops[name] += 1
        generator = kwargs.get("generator")
        if generator is not None and not (isinstance(self.asked, _Generator) and self.asked.device.type == "cuda"):
            raise DeviceError(f"{func}: Expected a 'cuda' device type for generator but found 'cpu'")
        index = self.index(device) if target == "cuda" else next((x.device.index for x in flat if _fake(x)), None)
        if func in COPIES:
            out = self._copy(func, args, kwargs, target, index)
        else:
            self._check(func, name, args, flat)
            leaves = tree_map(lambda x: x.elem if isinstance(x, FakeCuda) else self._inner(x), (args, kwargs))
            if target is not None:
                leaves[1]["device"] = torch.device(
                    "meta" if self.meta and target == "cuda" else "cpu" if target == "cuda" else device
                )
            if generator is not None:
                leaves[1]["generator"] = generator
            kernel = _KERNELS.get(func, func)
            result = (
                self._draw(func, leaves, index)
                if torch.Tag.nondeterministic_seeded in func.tags
                else kernel(*leaves[0], **leaves[1])
            )
            keep = target is not None and target != "cuda"
            out = tree_map(
                lambda x: FakeCuda(x, index) if isinstance(x, Tensor) and not _fake(x) and not keep else x,
                result,
            )
            if here:
                out = return_and_correct_aliasing(func, args, kwargs, out) if _mutates(func) else out
        if self.hook is not None:
            self.hook(func, args, kwargs, out)
        return out

    def _inner(self, x: Any) -> Any:
        return x.to("meta") if self.meta and isinstance(x, Tensor) and x.device.type == "cpu" else x

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any], target: str | None, index: int) -> Any:
        source = args[1] if func is not aten._to_copy.default else args[0]
        to_cuda = (
            isinstance(args[0], FakeCuda)
            if func is not aten._to_copy.default
            else (target or source.device.type) == "cuda"
        )
        if isinstance(source, FakeCuda) and not to_cuda:
            self.log.add("d2h", func, source.nbytes)
            self.log.add("sync", func)
        elif not isinstance(source, FakeCuda) and to_cuda and not (source.ndim == 0 and func is aten.copy_.default):
            self.log.add("h2d", func, source.nbytes)
        raw = source.elem if isinstance(source, FakeCuda) else source
        if func is aten._to_copy.default:
            if self.meta and not to_cuda:
                raise DeviceError("a tensor without numbers (meta=True) cannot be copied to the host")
            options = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory", "non_blocking")}
            moved = raw.to("meta" if self.meta else "cpu")
            moved = aten._to_copy.default(moved, **options)  # a copy even where nothing changes, as between devices
            return FakeCuda(moved, index) if to_cuda else moved
        mine = args[0].elem if isinstance(args[0], FakeCuda) else args[0]
        out = func(mine, raw.to(mine.device), *args[2:])
        return args[0] if func is aten.copy_.default else FakeCuda(out, index) if to_cuda else out

    def _check(self, func: Any, name: str, args: Any, flat: list[Tensor]) -> None:
        cpu = [x for x in flat if not isinstance(x, FakeCuda) and x.device.type == "cpu"]
        if func in INDEXED:
            index = [x for x in args[1] if x is not None]
            if isinstance(
                args[0], FakeCuda
            ):  # CPU indices are allowed, and travel; the index is read back if it is boolean
                for x in index:
                    if not isinstance(x, FakeCuda):
                        self.log.add("h2d", func, x.nbytes)
                    if x.dtype in (torch.bool, torch.uint8):
                        self.log.add("sync", func)
                cpu = [x for x in cpu if not any(x is one for one in index)]
        if torch.Tag.pointwise in func.tags or name in SCALARS_TOO:
            cpu = [x for x in cpu if x.ndim]
        if (cpu and any(map(_fake, flat))) or len({x.device for x in flat if _fake(x)}) > 1:
            shapes = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in flat[:6])
            raise DeviceError(f"{func}: Expected all tensors to be on the same device, got {shapes}")
        if name in WAITING or (name == "repeat_interleave" and func is aten.repeat_interleave.Tensor):
            self.log.add("sync", func)

    def _draw(self, func: Any, leaves: Any, index: int) -> Any:
        if leaves[1].get("generator") is not None:
            return func(*leaves[0], **leaves[1])
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(self.cards[index].random)
        try:
            return func(*leaves[0], **leaves[1])
        finally:
            self.cards[index].random = torch.default_generator.get_state()
            torch.default_generator.set_state(before)


def _fake(x: Any) -> bool:
    return isinstance(x, FakeCuda)


def _mutates(func: Any) -> bool:
    return any(a.alias_info is not None for a in (*func._schema.arguments, *func._schema.returns))


_active: _Device | None = None


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert _active is not None
        return _active.run(func, args, kwargs or {})


def _with_index(value: Any) -> Any:
    """``cuda`` is the current device, which torch would ask the driver for."""
    named = value == "cuda" if isinstance(value, str) else isinstance(value, torch.device) and value.type == "cuda"
    if named and _active is not None and torch.device(value).index is None:
        return torch.device("cuda", _active.current)
    return value


class _Bindings(TorchFunctionMode):
    """What asks the driver before it dispatches.

    Attention is the CPU's flash kernel (with ``meta`` the GPU's, or with a mask the efficient one).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.device:
            args, kwargs = tuple(map(_with_index, args)), {key: _with_index(value) for key, value in kwargs.items()}
        if func is torch.Tensor.cuda and len(args) == 1 and _active is not None:
            return args[0].to(torch.device("cuda", _active.current))
        if _active is not None and kwargs.get("generator") is not None:
            _active.asked = kwargs["generator"]
        if func is torch.Tensor.backward:
            with self:  # blocks are computed again in it
                return _backward(args[0], kwargs.get("gradient", args[1] if len(args) > 1 else None))
        if (
            func in (torch.tensor, torch.as_tensor, torch.asarray)
            and torch.device(kwargs.get("device") or "cpu").type == "cuda"
        ):
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if func is torch.Tensor.tolist and isinstance(args[0], FakeCuda):
            return args[0].cpu().tolist()
        if func is torch.Tensor.new_tensor and isinstance(args[0], FakeCuda):
            return torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype).to(
                kwargs.get("device") or args[0].device
            )
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], FakeCuda):
            if torch.is_autocast_enabled("cuda"):
                dtype = torch.get_autocast_dtype("cuda")
                args = tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
            assert _active is not None
            gqa = kwargs.pop("enable_gqa", False)
            if _active.meta:
                mask = kwargs.get("attn_mask")
                if mask is None and not gqa:
                    return aten._scaled_dot_product_flash_attention(*args[:3])[0]
                bias = torch.zeros(mask.shape, dtype=args[0].dtype, device=args[0].device).expand(
                    -1, args[0].shape[1], args[0].shape[2], -1
                )
                return aten._scaled_dot_product_efficient_attention(*args[:3], bias, args[0].requires_grad)[0]
            query, key, value = args[:3]
            if gqa:
                key, value = (one.repeat_interleave(query.shape[-3] // key.shape[-3], -3) for one in (key, value))
            mask = kwargs.pop("attn_mask", None)
            if mask is not None and mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, -torch.inf)
            attention = aten._scaled_dot_product_flash_attention_for_cpu  # keeps as little as the one on a GPU
            return attention(query, key, value, attn_mask=mask, **kwargs)[0]
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    """``torch.Generator("cuda")``."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        self = super().__new__(cls)
        self._on = torch.device(device)
        return self

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        if self._on.type != "cuda" or _active is None:
            return self._on
        return torch.device("cuda", _active.index(self._on))


class _OnDevice:
    """``torch.cuda.device``."""

    def __init__(self, device: Any) -> None:
        assert _active is not None
        self._index, self._before = _active.index(device), _active.current

    def __enter__(self) -> None:
        _active.current = self._index  # type: ignore[union-attr]

    def __exit__(self, *_: object) -> None:
        _active.current = self._before  # type: ignore[union-attr]


class _Stream:
    """``torch.cuda.Event`` and ``current_stream()``: to wait for one is a sync."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    wait = wait_event = wait_stream = record_event = record

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        torch.cuda.synchronize()


def _patches(device: _Device) -> list[Any]:
    card = device.card

    def waits(on: Any = None) -> None:
        device.log.counts["sync", f"{_where()} [synchronize cuda:{device.index(on)}]"] += 1

    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: len(device.cards),
        "current_device": lambda: device.current,
        "set_device": lambda on: setattr(device, "current", device.index(on)),
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: "fake CUDA device",
        "get_device_capability": lambda *_: (9, 0),
        "get_rng_state": lambda on="cuda": card(on).random.clone(),
        "empty_cache": lambda: None,
        "synchronize": waits,
        "is_current_stream_capturing": lambda: False,
        "set_rng_state": lambda state, on="cuda": setattr(card(on), "random", state.clone()),
        "memory_allocated": lambda on=None: card(on).memory,
        "memory_reserved": lambda on=None: card(on).memory,
        "max_memory_allocated": lambda on=None: card(on).peak,
        "reset_peak_memory_stats": lambda on=None: setattr(card(on), "peak", card(on).memory),
        "mem_get_info": lambda on=None: (MEMORY - card(on).memory, MEMORY),
        "manual_seed_all": lambda seed: [one.seed(seed) for one in device.cards],
        "manual_seed": lambda seed: card().seed(seed),
        "device": _OnDevice,
        "Event": _Stream,
        "current_stream": _Stream,
        "default_stream": _Stream,
        "_is_in_bad_fork": lambda: False,
    }
    patches = [mock.patch.object(torch.cuda, name, value) for name, value in cuda.items() if hasattr(torch.cuda, name)]
    patches += [
        mock.patch.object(torch.cuda.random, n, cuda[n]) for n in ("get_rng_state", "set_rng_state", "manual_seed_all")
    ]
    return [*patches, mock.patch.object(torch, "Generator", _Generator)]


class _Saved:
    """A tensor kept for the backward pass, let go of when it is read: the engine frees what a node has kept."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor

    def read(self) -> Tensor:
        tensor, self.tensor = self.tensor, None
        assert tensor is not None, "fake_cuda: a graph was run backward twice"
        return tensor


def _backward(tensors: Any, grad_tensors: Any = None, *_: Any, **__: Any) -> None:
    """``torch.autograd.backward`` node by node: the engine would ask the driver for streams."""
    roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    grads = (
        [None] * len(roots)
        if grad_tensors is None
        else [grad_tensors]
        if isinstance(grad_tensors, Tensor)
        else list(grad_tensors)
    )
    nodes, waits = [root.grad_fn for root in roots], collections.Counter()
    seen = set(nodes)
    for node in nodes:  # grows
        for after, _n in node.next_functions:
            if after is not None:
                waits[after] += 1
                if after not in seen:
                    seen.add(after)
                    nodes.append(after)
    buffers: dict[Any, dict[int, Tensor]] = collections.defaultdict(dict)
    number = next(_backwards)
    with torch.no_grad(), mock.patch.object(torch._C, "_current_graph_task_id", lambda: number):
        for root, grad in zip(roots, grads, strict=True):
            buffers[root.grad_fn][root.output_nr] = torch.ones_like(root) if grad is None else grad
        ready = [node for node in set(nodes[: len(roots)]) if not waits[node]]
        while ready:
            ready.sort(key=lambda node: node._sequence_nr())
            node = ready.pop()
            got = buffers.pop(node, {})
            count = max(len(node._input_metadata), max(got, default=-1) + 1)
            out = (
                (node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node)(
                    *(got.get(i) for i in range(count))
                )
                if got
                else ()
            )
            out = out if isinstance(out, tuple) else (out,)
            for i, (after, number) in enumerate(node.next_functions):
                if after is None:
                    continue
                grad = out[i] if i < len(out) else None
                if grad is not None:
                    meta = after._input_metadata[number]
                    grad = grad.sum_to_size(meta.shape) if grad.shape != meta.shape else grad
                    grad = grad.to(meta.dtype) if grad.dtype != meta.dtype else grad
                    before = buffers[after].get(number)
                    buffers[after][number] = grad if before is None else before + grad
                waits[after] -= 1
                if not waits[after]:
                    ready.append(after)


_backwards = itertools.count(1)


@contextlib.contextmanager
def fake_cuda(*, meta: bool = False, devices: int = 1):
    """Within it there are CUDA devices, at first one; gives a :class:`Log`."""
    global _active
    log = Log()
    device = _Device(log, meta, devices)
    torch._C._ensureCUDADeviceGuardSet()  # one that does not ask the driver
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for patch in _patches(device):
            stack.enter_context(patch)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        stack.enter_context(mock.patch.object(torch.autograd, "backward", _backward))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_Saved, _Saved.read))
        stack.enter_context(_Bindings())
        stack.enter_context(_Factories())
        _active = device
        log.device = device  # type: ignore[attr-defined]
        try:
            yield log
        finally:
            _active = None


def main() -> None:
    """Run a script or a module."""
    arguments = sys.argv[1:]
    if not arguments:
        raise SystemExit(__doc__)
    sys.modules["fake_cuda"] = sys.modules["__main__"]
    with fake_cuda() as log:
        try:
            if arguments[0] == "-m":
                sys.argv = arguments[1:]
                sys.path.insert(0, os.getcwd())
                runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = arguments
                sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
                runpy.run_path(arguments[0], run_name="__main__")
        finally:
            print(log.report(), file=sys.stderr)


if __name__ == "__main__":
    main()
