"""The published CIFAR-10-LT runs, 2000 epochs of SDCLR and SimCLR and their scores, without Ray.

    python -m benchmarks.paper pack --folder FOLDER --cifar CIFAR --lists LISTS
    python -m benchmarks.paper run --folder FOLDER               # again, until it says done
    python -m benchmarks.paper run --folder FOLDER --device cpu --small   # made-up sets, a minute
    python -m benchmarks.paper run --folder FOLDER --device cpu --precision float32 --short 2

`pack` writes the sets in parts below 60 MiB, each of which can travel alone: pre-training needs
pretrain-0 only. `run` does what comes next, for `--limit-s` seconds at most (520), and keeps its
state in FOLDER. It ends with 3 while there is more to do, and with 0 when all scores are there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.paper.pretrain import Precision, Pretraining, plan_of
from benchmarks.paper.score import Scoring
from benchmarks.paper.sets import NAMES, pack, read_set, small_sets

METHODS = ("sdclr", "simclr")
MORE = 3
_RESERVE_S = 20.0


def run(
    folder: Path,
    *,
    device: str,
    small: bool,
    precision: Precision,
    limit_s: float,
    short_epochs: int | None = None,
) -> int:
    """Train, then score, until all is done or the time is over; return the exit code."""
    end_s = time.monotonic() + limit_s
    made_up = small_sets() if small else {}
    for method in METHODS:
        data = made_up.get("pretrain") or read_set(folder, "pretrain")
        plan = plan_of(method, small=small, precision=precision, short_epochs=short_epochs)
        training = Pretraining(plan, data, device=device, folder=folder)
        start_s = time.monotonic()
        done = training.train(limit_s=max(0.0, end_s - time.monotonic() - _RESERVE_S * (not small)))
        speed = training.num_images / max(time.monotonic() - start_s, 1e-9)
        step, num = training.trainer.step, training.trainer.num_steps
        print(f"{method}: step {step} of {num}, {speed:,.0f} images/s in this call", flush=True)
        if not done:
            return MORE
        sets = made_up or {name: read_set(folder, name) for name in NAMES}
        scoring = Scoring(training, sets, small=small or short_epochs is not None)
        for protocol in scoring.missing():
            if time.monotonic() > end_s - _RESERVE_S * (not small):
                return MORE
            scoring.score(protocol)
            print(f"{method}: {protocol} is scored", flush=True)
    print((folder / "scores.json").read_text())
    print("done")
    return 0


def main() -> int:
    """Pack the sets, or do the next minutes of the runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper")
    parser.add_argument("what", choices=("pack", "run"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cifar", help="folder with CIFAR-10")
    parser.add_argument("--lists", type=Path, help="folder with the published lists")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--limit-s", type=float, default=520.0)
    parser.add_argument("--small", action="store_true", help="made-up sets and sizes for a CPU")
    parser.add_argument(
        "--short", type=int, metavar="EPOCHS",
        help="the published sets, so many epochs of a ResNet-8, short classifiers: for a CPU",
    )  # fmt: skip
    args = parser.parse_args()
    if args.what == "pack":
        for file in pack(args.cifar, args.lists, args.folder):
            print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
        return 0
    return run(
        args.folder, device=args.device, small=args.small, precision=args.precision,
        limit_s=args.limit_s, short_epochs=args.short,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
