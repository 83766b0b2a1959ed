"""How often this process had to ask storage again, by what it asked for."""

from __future__ import annotations

from collections import Counter

RETRIES: Counter[str] = Counter()
"""Action (`read`, `write`, `list`, ...) -> number of repeated tries since the process started."""
