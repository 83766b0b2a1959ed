"""Rows of a set that arrive in any order, each exactly once.

Shapes: N rows of a set, n rows of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.decoding import Columns
from pipeline.errors import DataError


class RowLedger:
    """Ledger of the rows of a set that have arrived.

    Args:
        where: the data set and set, for messages.
        num_rows: N.
    """

    def __init__(self, where: str, num_rows: int) -> None:
        self._where = where
        self._times_seen_N = np.zeros(num_rows, np.int64)
        self._num_unknown = 0
        self.num_arrived = 0

    def add(self, rows_n: NDArray[np.integer]) -> None:
        """Note the arrival of some rows."""
        is_known = (rows_n >= 0) & (rows_n < len(self._times_seen_N))
        np.add.at(self._times_seen_N, rows_n[is_known], 1)
        self._num_unknown += int((~is_known).sum())
        self.num_arrived += len(rows_n)

    def close(self) -> None:
        """Refuse a set of which a row is missing or came twice.

        Raises:
            DataError: with the number of rows that are wrong.
        """
        wrong = int((self._times_seen_N != 1).sum()) + self._num_unknown
        if wrong:
            raise DataError(
                "E-DATA-039",
                f"{wrong} of {len(self._times_seen_N)} images did not arrive exactly once",
                where=self._where,
                todo="run the stage again; if it happens again, delete the data set and ingest",
            )


def in_order(batches: Sequence[Columns], where: str, num_rows: int) -> Columns:
    """Return all columns of some batches, joined in the order of their `row`.

    Args:
        batches: each with `row` (n,) and other columns of n values.
        where: the data set and set, for messages.
        num_rows: N.

    Raises:
        DataError: a row is missing or came twice.
    """
    ledger = RowLedger(where, num_rows)
    for batch in batches:
        ledger.add(batch["row"])
    ledger.close()
    order = np.argsort(np.concatenate([batch["row"] for batch in batches]))
    return {name: np.concatenate([batch[name] for batch in batches])[order] for name in batches[0]}
