"""Everything about one GPU in one call of under 9 minutes; sdclr alone, without Ray.

    python -m benchmarks.gpu --out FOLDER                        # on the GPU of this machine
    python -m benchmarks.gpu --out FOLDER --device cpu --small   # the same on a CPU, in minutes

Each part is a process with a budget of seconds, which ends it. Rows are written to
FOLDER/rows.jsonl as they come, so a call that is cut still says what it measured; FOLDER/gpu.json
has all of them, with hardware and versions, at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu import checks, speed, whole
from benchmarks.gpu.bench import ROWS, Bench, read_rows
from benchmarks.table import heading, render, to_json

PARTS: dict[str, tuple[float, Callable[[Bench], None]]] = {
    "ceilings": (25, checks.ceilings),
    "agreement": (40, checks.agreement),
    "waits": (25, checks.waits),
    "graph": (25, checks.graph),
    "faults": (30, checks.faults),
    "resnet18": (75, speed.resnet18),
    "resnet50": (120, speed.resnet50),
    "ranks": (40, checks.ranks),
    "kept": (25, whole.kept),
    "stream": (40, whole.stream),
    "training": (90, whole.training),
}
"""Part -> seconds at most, its imports included, and what it does; 535 s together."""
SMALL_S = 600.0
"""For a part in small size: it ends what hangs, and no part of a busy CPU."""


def budget_of(name: str, *, small: bool) -> float:
    """Return the seconds after which a part is ended."""
    return SMALL_S if small else PARTS[name][0]


def run_part(name: str, device: str, *, small: bool, out: Path) -> None:
    """Run one part in this process."""
    torch.manual_seed(0)
    budget_s = budget_of(name, small=small) - 10
    bench = Bench(device, small=small, out=out, budget_s=budget_s)
    try:
        PARTS[name][1](bench)
    except Exception as error:  # the other parts go on
        bench.failed(name, error)


def main() -> int:
    """Run all parts, or those that are named; 1 when one failed or took too long."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        run_part(args.part, args.device, small=args.small, out=args.out)
        return 0
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / ROWS).unlink(missing_ok=True)
    start_s = time.monotonic()
    for name in args.parts or PARTS:
        print(f"== {time.monotonic() - start_s:.0f} s: {name}", flush=True)
        _run_apart(name, args)
    rows = read_rows(args.out)
    content = to_json(rows) | {"device": args.device}
    if torch.device(args.device).type == "cuda":
        content["device"] = torch.cuda.get_device_name(args.device)
    (args.out / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"{content['device']}; {heading(content)}")
    print(render(rows))
    return int(any(row.note.startswith("failed: ") for row in rows))


def _run_apart(name: str, args: argparse.Namespace) -> None:
    """Run a part in a process of its own: what it breaks on the device ends with it."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--device", args.device]
    command += ["--out", str(args.out), *(["--small"] if args.small else [])]
    budget_s = budget_of(name, small=args.small)
    bench = Bench("cpu", small=True, out=args.out, budget_s=0)
    try:
        subprocess.run(command, check=True, timeout=budget_s)
    except subprocess.TimeoutExpired:
        bench.failed(name, TimeoutError(f"took more than {budget_s:g} s"))
    except subprocess.CalledProcessError as error:
        bench.failed(name, RuntimeError(f"ended with code {error.returncode}"))


if __name__ == "__main__":
    sys.exit(main())
