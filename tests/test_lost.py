"""Work that Ray loses begins again, a finite number of times, and ends in words: on real losses."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import retry
from pipeline.cluster.retry import cluster_error_of, retry_lost_work
from pipeline.errors import ClusterError, DataError
from tests.refusals import raises

pytestmark = pytest.mark.ray


class DiesAtTheStart:
    """An actor whose process is killed before it has started, as long as a file says so."""

    def __init__(self, lives: str) -> None:
        left = int(Path(lives).read_text())
        Path(lives).write_text(str(left - 1))
        if left > 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


class RefusesToStart(DiesAtTheStart):
    def __init__(self, lives: str) -> None:
        Path(lives).write_text(str(int(Path(lives).read_text()) - 1))
        raise ValueError("no such crop")


def extract(kind: type, lives: Path) -> list[int]:
    """As the extraction of features: an actor that Ray Data does not restart in place."""
    import ray
    from ray.data import ActorPoolStrategy

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        rows = ray.data.range(4).map_batches(
            kind,
            fn_constructor_args=(str(lives),),
            compute=ActorPoolStrategy(size=1),
            num_cpus=0.1,
            max_restarts=0,
        )
    return sorted(row["id"] for row in rows.iter_rows())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_PAUSE_S", 0.0)


@pytest.mark.promise("R17")
def test_an_actor_that_is_lost_before_it_starts_is_replaced(
    ray_cluster: None, tmp_path: Path
) -> None:
    said: list[str] = []
    (tmp_path / "lives").write_text("2")
    found = retry_lost_work(lambda: extract(DiesAtTheStart, tmp_path / "lives"), say=said.append)
    assert found == [0, 1, 2, 3]
    assert len(said) == 2 and "try 2 of 3" in said[0] and "died" in said[0]


@pytest.mark.promise("R17", control=True)
def test_ray_data_alone_gives_up_at_the_first_such_loss(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    (tmp_path / "lives").write_text("1")
    with pytest.raises(ray.exceptions.RayError):
        extract(DiesAtTheStart, tmp_path / "lives")


@pytest.mark.promise("R18", "O2")
def test_losses_without_end_use_up_the_tries_and_are_told_in_words(
    ray_cluster: None, tmp_path: Path
) -> None:
    (tmp_path / "lives").write_text("99")
    with pytest.raises(Exception) as raised:
        retry_lost_work(lambda: extract(DiesAtTheStart, tmp_path / "lives"), say=lambda _: None)
    assert (tmp_path / "lives").read_text() == "96"
    told = cluster_error_of(raised.value)
    assert isinstance(told, ClusterError) and "again and again" in told.what


@pytest.mark.promise("R18")
def test_an_actor_that_refuses_to_start_is_not_tried_again_and_says_why(
    ray_cluster: None, tmp_path: Path
) -> None:
    (tmp_path / "lives").write_text("99")
    with pytest.raises(Exception) as raised:
        retry_lost_work(lambda: extract(RefusesToStart, tmp_path / "lives"), say=lambda _: None)
    assert (tmp_path / "lives").read_text() == "98"
    told = cluster_error_of(raised.value)
    assert told is not None and "no such crop" in told.what


def test_what_is_no_loss_is_raised_as_it_is() -> None:
    def broken() -> None:
        raise DataError("E-DATA-999", "a broken shard")

    with raises("E-DATA-999"):
        retry_lost_work(broken, say=lambda _: None)
    assert cluster_error_of(ValueError("another")) is None


@pytest.mark.promise("R15", "O2")
def test_tasks_that_never_get_a_cpu_are_told_in_words() -> None:
    from ray.data.exceptions import ExecutionTimeoutError

    told = cluster_error_of(ExecutionTimeoutError("no progress for at least 300s\nOperators: ..."))
    assert told is not None and told.exit_code == 5 and "300s" in told.what
    assert cluster_error_of(ValueError("another")) is None
