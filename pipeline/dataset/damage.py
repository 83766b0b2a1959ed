"""Which image of a damaged shard was changed: asked in a process of its own.

Arrow may crash on bytes that were tampered with, so a shard is parsed only after its hash was
found right. To name the sample of a shard whose hash is wrong, a child process parses it, and may
well die of it: then the shard alone is named.
"""

from __future__ import annotations

import os
import subprocess
import sys

from pipeline.dataset.shards import changed_sample

_LIMIT_S = 60


def find_changed_sample(data: bytes) -> str | None:
    """The id of the first sample whose image does not have its recorded hash, if it can be told."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", "pipeline.dataset.damage"],
            input=data,
            capture_output=True,
            timeout=_LIMIT_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return child.stdout.decode() or None if child.returncode == 0 else None


if __name__ == "__main__":
    sys.stdout.write(changed_sample(sys.stdin.buffer.read()) or "")
