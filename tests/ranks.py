"""Run a function on several gloo ranks and bring back what each returns."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_ranks(
    function: Callable[..., dict[str, Any]], *args: Any, num_ranks: int = 2
) -> list[Any]:
    """`function(*args)` on each rank of a fresh process group: what each returned, by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank_main, (num_ranks, port, folder, function, args), nprocs=num_ranks)
        files = [Path(folder) / f"{rank}.pt" for rank in range(num_ranks)]
        return [torch.load(file, weights_only=True) for file in files]


def _rank_main(
    rank: int,
    num_ranks: int,
    port: int,
    folder: str,
    function: Callable[..., dict[str, Any]],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=60),
    )
    try:
        torch.save(function(*args), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
