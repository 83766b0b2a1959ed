"""Copies between a host and its GPU that neither has to wait for; on a CPU there is no copy.

A copy from ordinary memory, or one that is read at once, stops the host until the device has done
all that was launched before. Then the device idles while the host launches the next step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_STAGED_BYTES = 64 * 1024  # the driver takes so much of ordinary memory without a wait


class HostCopy:
    """A tensor on its way to the host; `read` waits for it.

    Args:
        values: on any device; not changed before it is read where it is on the CPU.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._event = values.detach(), None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values.detach(), non_blocking=True)
            self._event = recorded_event()

    @property
    def is_here(self) -> bool:
        """Whether `read` returns at once."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def read(self) -> Tensor:
        """Return the tensor on the CPU, once it is complete."""
        if self._event is not None:
            self._event.synchronize()
            self._values, self._event = self._values.clone(), None  # pinned memory is scarce
        return self._values


def host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU; for all of a GPU's together the host waits once."""
    copies, device = {}, None
    for name, tensor in tensors.items():
        if not tensor.is_cuda:
            copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
            continue
        device = tensor.device
        copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        copies[name].copy_(tensor.detach(), non_blocking=True)
    if device is not None:
        torch.cuda.current_stream(device).synchronize()
    return copies


def recorded_event() -> torch.cuda.Event:
    """Return a mark behind all that the current GPU was asked to do."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the host does not wait for a copy to a GPU."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    if tensor.numel() * tensor.element_size() > _STAGED_BYTES and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
