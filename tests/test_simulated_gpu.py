"""The GPU that is not there: what it counts, what it refuses, and that its values are the CPU's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sdclr.transfer import HostCopy, to_device
from tests.simulated_gpu import DEVICE, STAGED_BYTES, Event, PlacementError, SimulatedGPU
from tests.simulated_graph import CaptureError

WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool((x > 1).any()),
    "tolist": lambda x: x.tolist(),
    "to the CPU": lambda x: x.cpu(),
    "to the CPU, not awaited, into ordinary memory": lambda x: torch.empty(4).copy_(
        x, non_blocking=True
    ),
    "nonzero": lambda x: (x > 1).nonzero(),
    "masked_select": lambda x: x.masked_select(x > 1),
    "boolean index": lambda x: x[x > 1],
    "index from the CPU": lambda x: x[torch.tensor([0, 2])],
    "where": lambda x: torch.where(x > 1),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "from the CPU": lambda x: x + torch.ones(4).to(DEVICE),
    "much from ordinary memory": lambda x: torch.ones(STAGED_BYTES).to(DEVICE, non_blocking=True),
    "event of the last launch": lambda x: HostCopy(x.exp()).read(),
}
FREE: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x + 1).exp().sum(),
    "view": lambda x: x.view(2, 2).T[0],
    "numbered rows": lambda x: x[torch.arange(2, device=DEVICE)],
    "choice on the device": lambda x: torch.where(x > 1, x, 0.0),
    "little from ordinary memory": lambda x: torch.ones(4).to(DEVICE, non_blocking=True),
    "much from pinned memory": lambda x: (
        torch.ones(STAGED_BYTES).pin_memory().to(DEVICE, non_blocking=True)
    ),
    "to_device": lambda x: to_device(torch.ones(STAGED_BYTES), DEVICE),
    "into pinned memory": lambda x: HostCopy(x),
    "number from the CPU": lambda x: x * torch.tensor(2.0),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_counted_once_with_its_operation(name: str) -> None:
    with SimulatedGPU() as gpu:
        x_4 = to_device(torch.arange(4.0), DEVICE)
        WAITS[name](x_4)
        assert sum(gpu.waits.values()) == 1, gpu.waits


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_wait_is_not_counted(name: str) -> None:
    with SimulatedGPU() as gpu:
        x_4 = to_device(torch.arange(4.0), DEVICE)
        FREE[name](x_4)
        assert not gpu.waits


def test_an_event_is_passed_once_a_later_one_was_made() -> None:
    with SimulatedGPU() as gpu:
        x_4 = to_device(torch.arange(4.0), DEVICE)
        copy = HostCopy(x_4 * 2)
        assert not copy.is_here
        x_4.exp()
        assert not copy.is_here
        later = HostCopy(x_4)
        assert copy.is_here and copy.read().tolist() == [0, 2, 4, 6] and not gpu.waits
        assert not later.is_here
        event = Event()
        event.record()
        event.synchronize()
        assert sum(gpu.waits.values()) == 1


def test_launches_are_counted_but_for_views() -> None:
    with SimulatedGPU() as gpu:
        x_22 = to_device(torch.arange(4.0), DEVICE).view(2, 2)
        gpu.forget()
        y_22 = (x_22.T + 1).mul_(2)
        assert gpu.launches == {"add": 1, "mul_": 1} and gpu.num_launches == 2
        assert y_22.cpu().tolist() == [[2, 6], [4, 8]]


def test_two_devices_in_one_operation_are_refused() -> None:
    with SimulatedGPU():
        x_4 = to_device(torch.arange(4.0), DEVICE)
        with pytest.raises(PlacementError):
            x_4 + torch.ones(4)
        with pytest.raises(PlacementError):
            nn.Linear(4, 2)(x_4)


def test_a_module_trains_there_as_on_the_cpu() -> None:
    def gradient(device: str) -> Tensor:
        layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU())
        with torch.no_grad():
            for number, parameter in enumerate(layer.parameters()):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
                parameter += number
        layer.to(device)
        layer(torch.linspace(0, 1, 20, device=device).view(5, 4)).square().sum().backward()
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        return torch.cat([grad.flatten().cpu() for grad in grads])

    expected = gradient("cpu")
    with SimulatedGPU() as gpu:
        found = gradient("cuda:0")
        assert gpu.launches["addmm"] == 1
    torch.testing.assert_close(found, expected)


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.graph(graph, pool=None, stream=stream, capture_error_mode="global"):
        work()
    return graph


def test_a_capture_runs_nothing_and_a_replay_runs_all_on_the_same_memory() -> None:
    with SimulatedGPU() as gpu:
        x_2, sum_2 = torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE)
        norm, made = nn.BatchNorm1d(2).to(DEVICE), []

        def work() -> None:
            made.append((x_2 * 2).view(1, 2))
            sum_2.add_(made[0][0])
            norm(torch.stack([x_2, -x_2]))  # writes statistics that its schema does not name

        gpu.forget()
        graph = captured(work)
        assert not gpu.launches and sum(gpu.waits.values()) == 1
        assert sum_2.tolist() == [0, 0] and made[0].isnan().all()
        assert norm.num_batches_tracked.tolist() == 0 and norm.running_var.tolist() == [1, 1]
        gpu.forget()
        graph.replay()
        assert gpu.launches == {"graph": 1} and not gpu.waits
        x_2.fill_(5)
        graph.replay()
        assert made[0].tolist() == [[10, 10]] and sum_2.tolist() == [12, 12]
        assert norm.num_batches_tracked.tolist() == 2 and norm.running_var[0].tolist() > 1


def test_a_replay_has_the_numbers_and_the_memory_of_the_capture() -> None:
    with SimulatedGPU():
        x_2, number, places = torch.ones(2, device=DEVICE), torch.tensor(2.0), [1.0]
        made = []
        graph = captured(lambda: made.append(x_2 * number + places[0]))
        number.fill_(100)
        places[0] = 100
        replaced, x_2 = x_2, torch.full((2,), 7.0, device=DEVICE)
        graph.replay()
        assert made[0].tolist() == [3, 3] and replaced.tolist() == [1, 1]


IN_A_CAPTURE: dict[str, Callable[[Tensor], object]] = {
    **{name: WAITS[name] for name in ("item", "tolist", "nonzero", "boolean index", "to the CPU")},
    "little from ordinary memory": FREE["little from ordinary memory"],
    "from pinned memory": FREE["much from pinned memory"],
    "into pinned memory": FREE["into pinned memory"],
    "event": lambda x: Event().record(),
}


@pytest.mark.parametrize("name", IN_A_CAPTURE)
def test_what_a_capture_does_not_permit_is_refused(name: str) -> None:
    with SimulatedGPU() as gpu:
        x_4 = torch.ones(4, device=DEVICE)
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with (
            pytest.raises(CaptureError, match="not permitted"),
            torch.cuda.graph(graph, pool=None, stream=stream, capture_error_mode="global"),
        ):
            x_4.add_(1)
            IN_A_CAPTURE[name](x_4)
        assert gpu.capturing is None and x_4.tolist() == [1, 1, 1, 1]
        with pytest.raises(CaptureError, match="replay"):
            graph.replay()
