"""One ingest at a time in a place: the newest continues, an earlier one ends.

Object stores have no lock that all of them know. A claim is a small file with a random token:
whoever starts writes its own, and looks before it commits whether it is still there. So an ingest
that was killed blocks nobody, and of two that run at once the manifest is written by the one whose
shards were not cleared by the other.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Self

from pipeline import storage
from pipeline.errors import DataError, StorageError

CLAIM_NAME = "ingest.json"


class Claim:
    """The claim of this process on a data set, from construction to the end of `with`."""

    def __init__(self, data_uri: str) -> None:
        self._data_uri, self._uri = data_uri, storage.join(data_uri, CLAIM_NAME)
        token = {"token": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._content = json.dumps(token).encode() + b"\n"
        storage.write_bytes(self._uri, self._content)

    def check(self) -> None:
        """Refuse to go on when another ingest has begun in the same place.

        Raises:
            DataError: it has.
        """
        if not self._is_mine():
            raise DataError(
                "E-DATA-090",
                "another ingest of the same data set has begun here, and goes on in place of this "
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
            if self._is_mine():
                storage.delete_tree(self._uri)

    def _is_mine(self) -> bool:
        try:
            return storage.read_bytes(self._uri) == self._content
        except StorageError as error:
            if storage.is_missing(error):
                return False
            raise
