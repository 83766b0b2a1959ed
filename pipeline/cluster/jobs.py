"""Many small jobs at once: in Ray Data tasks for the real work, in threads for a dry run.

A job is a module-level function of (item, shared), with an item of plain values; its result is
plain values and, for columns, an Arrow table. A PipelineError travels as part of the result, so
that the driver can raise it as it is; any other exception is a bug and fails the stage.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from pipeline import storage
from pipeline.cluster.marked_nodes import on_nodes
from pipeline.errors import ClusterError, ErrorReport, PipelineError


@dataclass(frozen=True)
class Result:
    """Result of a job: values that JSON can hold, and columns."""

    values: Any = None
    table: pa.Table | None = None
    num_retries: int = 0


Job: TypeAlias = Callable[[dict[str, Any], Any], Result]


class Tasks(Protocol):
    """Execution of a job for every item; results arrive with the number of their item.

    `num_retries` counts the storage calls of the jobs that were tried again.
    """

    @property
    def num_retries(self) -> int: ...  # noqa: D102

    def map(  # noqa: D102
        self, job: Job, items: Sequence[dict[str, Any]], shared: Any = None
    ) -> Iterator[tuple[int, Result]]: ...


class ThreadTasks:
    """Threads of this process: enough for listing, and no cluster is needed."""

    def __init__(self, num_threads: int = 16) -> None:
        self._num_threads = num_threads
        self._retries_before = storage.num_retries()

    @property
    def num_retries(self) -> int:
        """Calls of this process that were tried again since then."""
        return storage.num_retries() - self._retries_before

    def map(
        self, job: Job, items: Sequence[dict[str, Any]], shared: Any = None
    ) -> Iterator[tuple[int, Result]]:
        """Yield results in the order of the items."""
        with ThreadPoolExecutor(self._num_threads) as pool:
            yield from enumerate(pool.map(lambda item: job(item, shared), items))


class RayTasks:
    """One Ray Data task for each item; `shared` goes to the object store once.

    Args:
        where: what the tasks work on, for messages and the dashboard.
        mark: of the nodes that may run them; None for any node.
    """

    def __init__(self, where: str, mark: str | None = None) -> None:
        self._where, self._mark = where, mark
        self.num_retries = 0

    def map(
        self, job: Job, items: Sequence[dict[str, Any]], shared: Any = None
    ) -> Iterator[tuple[int, Result]]:
        """Yield results as their tasks finish, in any order.

        Raises:
            PipelineError: that of the first job that failed with one.
            ClusterError: Ray gave a task up.
        """
        import ray
        from ray.data import DataContext

        context = DataContext.get_current()
        shown = context.enable_progress_bars
        context.enable_progress_bars = False  # the caller shows progress in its own way
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            rows = [
                {"number": number, "item": json.dumps(item)} for number, item in enumerate(items)
            ]
            source = ray.data.from_items(rows, override_num_blocks=max(1, len(rows)))
            done = source.map(
                ingest_task,  # type: ignore[arg-type]  # Ray's stub leaves no room for fn_kwargs
                fn_kwargs={"job": job, "shared": None if shared is None else ray.put(shared)},
                **on_nodes(self._mark),
            )
            done.set_name(self._where.rpartition("/")[2])  # on the dashboard
            for row in done.iter_rows() if rows else ():
                result = _unpacked(row)
                self.num_retries += result.num_retries
                yield row["number"], result
        except ray.exceptions.RayError as error:
            raise ClusterError(
                "E-CLUSTER-008",
                f"the ingest tasks failed: {_first_cause(error)}",
                where=self._where,
                todo="look at the worker logs of Ray; if memory ran out, lower ingest.shard_bytes",
            ) from error
        finally:
            context.enable_progress_bars = shown


def ingest_task(row: dict[str, Any], *, job: Job, shared: Any) -> dict[str, Any]:
    """Process one item into a row of plain values; Ray shows tasks by this function's name."""
    import ray

    if isinstance(shared, ray.ObjectRef):
        shared = ray.get(shared)
    before = storage.num_retries()
    failure, result = "", Result()  # no null: the column is text in every block
    try:
        result = job(json.loads(row["item"]), shared)
    except PipelineError as error:
        failure = ErrorReport.of(error).to_json()
    sink = pa.BufferOutputStream()
    if result.table is not None:
        with pa.ipc.new_stream(sink, result.table.schema) as writer:
            writer.write_table(result.table)
    return {
        "number": row["number"],
        "values": json.dumps(result.values),
        "table": sink.getvalue().to_pybytes(),
        "error": failure,
        "num_retries": storage.num_retries() - before,
    }


def _unpacked(row: dict[str, Any]) -> Result:
    if row["error"]:
        raise ErrorReport.from_json(row["error"]).error()
    table = pa.ipc.open_stream(row["table"]).read_all() if row["table"] else None
    return Result(json.loads(row["values"]), table, row["num_retries"])


def _first_cause(error: Exception) -> str:
    """Return the first exception in Ray's text, which wraps that of a task several times."""
    text = str(error).strip()
    found = re.search(r"^(?!ray\.)\w+(Error|Exception)\b.*", text, re.MULTILINE)
    first = found.group() if found else text.partition("\n")[0]
    return f"{type(error).__name__}: {first[:300]}"
