"""One ingest at a time in a place, by the rule of `pipeline.storage.claim`.

Of two ingests that run at once, the manifest is written by the one whose shards were not cleared by
the other.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Self

from pipeline import storage
from pipeline.errors import DataError, StorageError
from pipeline.storage import claim

CLAIM_NAME = "ingest.json"


class Claim:
    """The claim of this process on a data set, from construction to the end of `with`."""

    def __init__(self, data_uri: str) -> None:
        self._data_uri, self._uri = data_uri, storage.join(data_uri, CLAIM_NAME)
        self._token = claim.take(self._uri)

    def check(self) -> None:
        """Refuse to continue when another ingest has begun in the same place.

        Raises:
            DataError: it has.
        """
        if claim.holder(self._uri, self._token) is not claim.Holder.MINE:
            raise DataError(
                "E-DATA-090",
                "another ingest of the same data set has begun here, and takes the place of this "
                "one",
                where=self._data_uri,
                todo="wait until it is done, then run the stage again: a complete data set is used",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Take the claim back, if it still stands."""
        with suppress(StorageError) if error is not None else nullcontext():
            claim.release(self._uri, self._token)
