"""Count of this process's storage retries by operation."""

from __future__ import annotations

from collections import Counter

RETRIES: Counter[str] = Counter()
"""Action (`read`, `write`, `list`, ...) -> number of repeated tries since the process started."""
