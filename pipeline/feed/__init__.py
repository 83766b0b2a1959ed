"""Shards to the batches of one training worker: decoded once and kept, or streamed every epoch."""

from __future__ import annotations

from pipeline.feed.cache import SharedImages, decoded_rows, decoder
from pipeline.feed.plan import (
    StreamBudget,
    canvas_px,
    canvas_size,
    check_fits,
    decoded_bytes,
    described,
    epoch_plan,
    is_cached,
    stream_budget,
)
from pipeline.feed.source import Source, at_hand, open_source, streamed_set
from pipeline.feed.stream import StreamFeed, StreamSource

__all__ = [
    "SharedImages",
    "Source",
    "StreamBudget",
    "StreamFeed",
    "StreamSource",
    "at_hand",
    "canvas_px",
    "canvas_size",
    "check_fits",
    "decoded_bytes",
    "decoded_rows",
    "decoder",
    "described",
    "epoch_plan",
    "is_cached",
    "open_source",
    "stream_budget",
    "streamed_set",
]
