"""Mailbox from which ranks fetch their parts: one actor for a group of workers."""

from __future__ import annotations

import asyncio
from typing import Any


class Mailbox:
    """Letters by (round, number); each rank takes its own once. A new round clears older ones."""

    def __init__(self) -> None:
        self._round = -1
        self._letters: dict[tuple[int, int], dict[int, Any]] = {}
        self._changed = asyncio.Condition()

    async def put(self, round_: int, number: int, letters: list[Any]) -> None:
        """Store letter `number` of a round, one for each rank from 1 on."""
        async with self._changed:
            if round_ > self._round:
                self._round = round_
                self._letters.clear()
            if letters and round_ == self._round:
                self._letters[round_, number] = dict(enumerate(letters, 1))
            self._changed.notify_all()

    async def take(self, round_: int, number: int, rank: int) -> Any:
        """Return the letter of one rank as soon as it is there."""
        key = (round_, number)
        async with self._changed:
            await self._changed.wait_for(lambda: key in self._letters)
            letter = self._letters[key].pop(rank)
            if not self._letters[key]:
                del self._letters[key]
            return letter
