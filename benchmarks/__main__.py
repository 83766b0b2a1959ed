"""All benchmarks, or those that are named, in one table.

    python -m benchmarks [NAME ...]

Each runs in a process of its own, so that none inherits another's threads, memory or Ray.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import benchmarks
from benchmarks import table

_NOT_BENCHMARKS = {
    "__main__", "table", "timing", "published", "gpu", "health_correlation", "sweep_efficiency",
    "s3_reads", "streamed", "rare_images", "backbones", "two_nodes", "curated", "paper", "evidence",
}  # fmt: skip
_LIMIT_S = 600


def names() -> list[str]:
    """Return every module of this folder that has rows on a CPU."""
    found = {module.name for module in pkgutil.iter_modules(benchmarks.__path__)}
    return sorted(found - _NOT_BENCHMARKS)


def measure(name: str) -> list[table.Row]:
    """Run one benchmark; a failure gives a row that says so."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file)]
        try:
            subprocess.run(command, check=True, timeout=_LIMIT_S, stdout=sys.stderr)
        except subprocess.SubprocessError as error:
            return [table.Row(name=name, values=(), unit="", note=f"failed: {error}")]
        return table.from_json(json.loads(file.read_text()))


def main() -> int:
    """Measure what is named, or everything; 1 when a benchmark failed, 0 also for a miss."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names()))
    parser.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE")
    args = parser.parse_args()
    if unknown := set(args.names) - set(names()):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(names())}")
    rows: list[table.Row] = []
    for name in args.names or names():
        start = time.monotonic()
        print(f"== {name}", file=sys.stderr, flush=True)
        rows += measure(name)
        print(f"== {name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    content = table.to_json(rows)
    args.json.write_text(json.dumps(content, indent=1) + "\n")
    print(table.heading(content))
    print(table.render(rows))
    print(f"written to {args.json}")
    return int(any(row.note.startswith("failed: ") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
