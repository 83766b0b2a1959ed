"""A GPU that is not there: tensors that name cuda:0, hold their values on the CPU, and are counted.

    with SimulatedGPU() as gpu:
        x_3 = torch.ones(3).to("cuda:0")   # a launch and a copy that waits
        x_3.sum().item()                   # a host wait, with the line that caused it
        x_3 + torch.ones(3)                # PlacementError, as on a GPU

It proves without a GPU that no operation mixes devices, how often the host waits for the device,
and how many operations a piece of code launches. An operation counts as one launch, also where a
library would make several kernels, or one of many operations. Kernels of the project are computed
by the torch operations that they replace. Values are the CPU's, so results can
be compared. C++ sees tensors of the device `meta`, which needs no guard; Python sees a GPU. A
device is named with its number: torch itself looks up the number of a plain "cuda".
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sdclr import rendering
from tests import simulated_kernels
from tests.simulated_graph import CaptureError, SimulatedGraph

DEVICE = torch.device("cuda", 0)
STAGED_BYTES = 64 * 1024
"""The driver takes so much of pageable memory at once; a larger copy waits."""

# Operations that only describe memory anew, or reserve it.
_FREE = frozenset({
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "diagonal", "empty",
    "empty_like", "empty_strided", "expand", "is_pinned", "lift_fresh", "narrow", "new_empty",
    "new_empty_strided", "permute", "reshape", "select", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
})  # fmt: skip
# Operations whose result, or its shape, the host has to know.
_WAITING = frozenset({
    "_local_scalar_dense", "_unique2", "equal", "is_nonzero", "masked_select", "nonzero",
    "repeat_interleave", "unique_consecutive", "unique_dim",
})  # fmt: skip
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class PlacementError(RuntimeError):
    """One operation was given tensors of two devices."""


class DeviceTensor(Tensor):
    """A tensor that says it is on cuda:0."""

    values: Tensor
    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> DeviceTensor:
        with torch.inference_mode(False):  # a wrapper cannot be an inference tensor
            made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
                cls, values.size(), strides=values.stride(), dtype=values.dtype,
                storage_offset=values.storage_offset(), layout=values.layout, device="meta",
            )  # fmt: skip
        made.values = values
        return made

    def tolist(self) -> Any:
        """Return the values, for which the host waits."""
        SimulatedGPU.now().wait("tolist")
        return self.values.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.values!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return SimulatedGPU.now().run(func, args, kwargs or {})


class SimulatedGPU(TorchDispatchMode):
    """The device while it is entered.

    Attributes:
        launches: operation -> how often it was launched on the device.
        waits: what waited, and at which line of the project -> how often.
        capturing: the graph that is being captured, if any.
    """

    _current: SimulatedGPU | None = None

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.num_events, self.num_timed = 0, 0
        self.capturing: SimulatedGraph | None = None
        self._pinned: list[Tensor] = []  # kept, so that no address is used twice

    @classmethod
    def now(cls) -> SimulatedGPU:
        """Return the device that is entered."""
        assert cls._current is not None, "device tensors live inside `with SimulatedGPU()`"
        return cls._current

    @property
    def num_launches(self) -> int:
        """Operations launched so far."""
        return sum(self.launches.values())

    def forget(self) -> None:
        """Count from 0 again."""
        self.launches.clear()
        self.waits.clear()

    def wait(self, what: str) -> None:
        """Note that the host waits for the device, at which line of the project."""
        self.refuse_in_capture(what)
        self.waits[f"{what} at {_line()}"] += 1

    def refuse_in_capture(self, what: str) -> None:
        """Refuse what a GPU refuses while a graph is captured, or would do once, not in a replay.

        Raises:
            CaptureError: a graph is being captured.
        """
        if self.capturing is not None:
            raise CaptureError(f"{what} at {_line()}: not permitted when a graph is captured")

    def __enter__(self) -> SimulatedGPU:
        self._patches = _patches()
        self._patches.__enter__()
        SimulatedGPU._current = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        SimulatedGPU._current = None
        self._patches.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute one operation on the values, and take note of what a GPU would have done."""
        name = func._schema.name.partition("::")[2]
        leaves, spec = tree_flatten((args, kwargs))
        on, off = _sides(leaves)
        target = _target(kwargs, bool(on))
        if name == "_pin_memory":
            return self._pin(off[0])
        if name == "is_pinned":
            return not on and self._is_pinned(off[0])
        self._note_wait(name, args, kwargs, on, off, target)
        result_on = bool(on) if target is None else target.type == "cuda"
        if result_on and name not in _FREE:
            self.launches[name] += 1
        graph = self.capturing if result_on else None
        held = _values if graph is None else _frozen
        values, named = tree_unflatten([held(leaf) for leaf in leaves], spec)
        named.pop("pin_memory", None)
        if target is not None:
            named["device"] = torch.device("cpu")
        if graph is not None:
            graph.expect((values, named))
        found = func(*values, **named)
        if graph is not None:
            graph.add(func, values, named, found, is_free=name in _FREE)
        if kwargs.get("pin_memory"):
            self._pinned.append(found)
        if not result_on or name == "_local_scalar_dense":
            return found
        own = {id(t.values): t for t in on}  # in place, and out=
        return tree_map(lambda t: _wrapped(t, own), found)

    def _note_wait(
        self, name: str, args: Any, kwargs: dict[str, Any], on: list[DeviceTensor],
        off: list[Tensor], target: torch.device | None,
    ) -> None:  # fmt: skip
        """Record what the host would wait for; refuse what a GPU would refuse."""
        to_device = target is not None and target.type == "cuda"
        if name == "_to_copy" and target is not None and to_device != bool(on):
            lazy = bool(kwargs.get("non_blocking"))
            self._note_copy("to", (on or off)[0], lazy=lazy, pinned_target=False)
        elif name == "copy_" and on and off:
            lazy = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            pinned = not isinstance(args[0], DeviceTensor) and self._is_pinned(args[0])
            self._note_copy("copy_", args[1], lazy=lazy, pinned_target=pinned)
        elif on and any(t.dim() > 0 for t in off):
            if name not in _INDEXING:
                shapes = ", ".join(str(tuple(t.shape)) for t in off if t.dim() > 0)
                raise PlacementError(f"{name}: tensors {shapes} are on the CPU, at {_line()}")
            self.wait(f"{name} by an index on the CPU")
        if on and name in _WAITING:
            self.wait(name)
        elif on and name in _INDEXING and any(_is_boolean(index) for index in args[1]):
            self.wait(f"boolean {name}")

    def _note_copy(self, name: str, source: Tensor, *, lazy: bool, pinned_target: bool) -> None:
        self.refuse_in_capture(f"{name} between host and device")
        if isinstance(source, DeviceTensor):
            waits, way = not (lazy and pinned_target), "to the CPU"
        else:
            small = source.numel() * source.element_size() <= STAGED_BYTES
            waits, way = not (lazy and (small or self._is_pinned(source))), "to the device"
        if waits:
            self.wait(f"{name} {way}")

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.append(tensor.clone())
        return self._pinned[-1]

    def _is_pinned(self, tensor: Tensor) -> bool:
        address = tensor.untyped_storage().data_ptr()
        return any(t.untyped_storage().data_ptr() == address for t in self._pinned)


class Event:
    """A mark in the device's queue; to wait for it is free once a later one was made.

    One that takes the time is no later one: what was launched before it may not be done.
    """

    def __init__(self, *, enable_timing: bool = False, **_: Any) -> None:
        self.number, self.time, self._is_timed = 0.0, 0, enable_timing

    def record(self, stream: Any = None) -> None:
        """Put the mark behind everything that was launched."""
        gpu = SimulatedGPU.now()
        gpu.refuse_in_capture("event")
        gpu.num_timed += self._is_timed
        gpu.num_events += not self._is_timed
        self.number, self.time = gpu.num_events + 0.5 * self._is_timed, gpu.num_timed

    def query(self) -> bool:
        """Return whether the device has passed it."""
        return self.number < max(1, SimulatedGPU.now().num_events)

    def synchronize(self) -> None:
        """Wait for it."""
        if not self.query():
            SimulatedGPU.now().wait("event")

    def wait(self, stream: Any = None) -> None:
        """Let a stream wait, not the host."""

    def elapsed_time(self, later: Event) -> float:
        """Return milliseconds between two marks: one for each; refused before both are passed."""
        if not (self.query() and later.query()):
            raise RuntimeError("the device has not passed both events")
        return float(later.time - self.time)


class Stream:
    """A queue of the device; the order of a simulation is that of the program anyway."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.waited: list[Any] = []

    def wait_event(self, event: Event) -> None:
        """Let this stream wait, not the host."""
        self.waited.append(event)

    def wait_stream(self, stream: Stream) -> None:
        """Let this stream wait, not the host."""
        self.waited.append(stream)

    def record_event(self, event: Event | None = None) -> Event:
        """Return a mark at the end of this queue."""
        event = event or Event()
        event.record(self)
        return event

    def is_capturing(self) -> bool:
        """Return whether a graph is being captured."""
        return SimulatedGPU.now().capturing is not None

    def synchronize(self) -> None:
        """Wait for everything."""
        SimulatedGPU.now().wait("stream")


class Graph(SimulatedGraph):
    """A graph as torch has it."""

    def replay(self) -> None:
        """Launch all of it at once."""
        gpu = SimulatedGPU.now()
        gpu.refuse_in_capture("replay")
        gpu.launches["graph"] += 1
        self.run()


@contextmanager
def _captured(
    graph: Graph, *, pool: Any, stream: Stream, capture_error_mode: str
) -> Iterator[None]:
    """Record what is launched; the host waits for the device before that."""
    gpu = SimulatedGPU.now()
    gpu.wait("capture")
    gpu.capturing, is_whole = graph, False
    before = Counter(gpu.launches)
    try:
        yield
        is_whole = True
    finally:
        gpu.capturing, gpu.launches = None, before
        graph.end(is_whole=is_whole)


@contextmanager
def _patches() -> Iterator[None]:
    """Let torch.cuda answer as on a machine with one GPU."""
    main = Stream()

    def launched(name: str, num_programs: int, *arguments: Any, **constants: int) -> None:
        gpu = SimulatedGPU.now()
        assert num_programs > 0
        gpu.refuse_in_capture(name)
        gpu._note_wait(name, arguments, {}, *_sides(arguments), None)
        gpu.launches[name] += 1
        simulated_kernels.compute(name, *tree_map(_values, arguments), **constants)

    def on_stream(_: Any) -> Any:
        return mock.MagicMock()

    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: "simulated", "current_stream": lambda *_: main,
        "stream": on_stream, "Stream": Stream, "Event": Event,
        "CUDAGraph": Graph, "graph": _captured, "graph_pool_handle": object,
        "synchronize": lambda *_: main.synchronize(), "empty_cache": lambda: None,
    }  # fmt: skip
    with (
        mock.patch.multiple(torch.cuda, **answers),
        mock.patch.object(torch.accelerator, "current_stream", return_value=main),
        mock.patch.object(torch.accelerator, "current_accelerator", return_value=DEVICE),
        mock.patch.object(torch.Tensor, "record_stream", return_value=None),
        mock.patch.object(rendering, "launch", launched),
        # The first views of a shape are compared with the CPU's, which waits.
        mock.patch.object(rendering, "problem_of", return_value=""),
    ):
        yield


def _target(kwargs: dict[str, Any], on_device: bool) -> torch.device | None:
    """Return the device that an operation asks for; None when it follows its inputs."""
    if kwargs.get("device") is None:
        return None
    target = torch.device(kwargs["device"])
    # C++ fills in the device of an input, which to it is meta.
    return DEVICE if target.type == "meta" and on_device else target


def _values(item: Any) -> Any:
    return item.values if isinstance(item, DeviceTensor) else item


def _frozen(item: Any) -> Any:
    """Return memory of the device as it is, and a number of the host as it is now."""
    is_of_host = isinstance(item, Tensor) and not isinstance(item, DeviceTensor)
    return item.clone() if is_of_host else _values(item)


def _sides(items: Iterable[Any]) -> tuple[list[DeviceTensor], list[Tensor]]:
    """Return the tensors that are on the device, and those that are not."""
    tensors = [t for t in items if isinstance(t, Tensor)]
    on = [t for t in tensors if isinstance(t, DeviceTensor)]
    return on, [t for t in tensors if not isinstance(t, DeviceTensor)]


def _wrapped(item: Any, own: dict[int, DeviceTensor]) -> Any:
    if not isinstance(item, Tensor):
        return item
    return own[id(item)] if id(item) in own else DeviceTensor(item)


def _is_boolean(index: Any) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _line() -> str:
    """Return file and line of the project that the current operation comes from."""
    frame: FrameType | None = sys._getframe(1)
    frames = itertools.takewhile(bool, _outwards(frame))
    for found in frames:
        path = found.f_code.co_filename
        if any(f"/{room}/" in path for room in ("sdclr", "pipeline")) and "site-pack" not in path:
            return f"{path.rpartition('/')[2]}:{found.f_lineno}"
    return "?"


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
