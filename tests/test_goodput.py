"""Goodput: what a start, a fault and a resume cost, from the lines of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.record.goodput import goodput, loss_at
from pipeline.record.metrics import is_later
from pipeline.record.rows import Cause, RestoreRow, Row, StageRow, StepRow
from pipeline.train import faults


def step(number: int, time_s: float, method: str = "sdclr") -> StepRow:
    return StepRow(
        method=method, seed=0, epoch=0, step=number, num_steps=99, loss=1.0, lr=0.1,
        temperature=0.2, grad_norm=1.0, images_per_s=1.0, data_wait_frac=0.0, time_s=time_s,
    )  # fmt: skip


def began(time_s: float) -> StageRow:
    return StageRow(stage="train", event="start", wall_s=0.0, time_s=time_s)


class Run:
    """The lines of a run, written as a worker writes them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def start(self, at_s: float) -> None:
        self.rows.append(began(at_s))

    def steps(self, *numbers: int, from_s: float, method: str = "sdclr") -> None:
        self.rows += [step(n, from_s + 1 + i, method) for i, n in enumerate(numbers)]

    def resume(
        self, number: int, at_s: float, *, fault: Cause = "worker", method: str = "sdclr"
    ) -> RestoreRow:
        loss = loss_at(self.rows, method, step=number, now_s=at_s)
        row = RestoreRow(
            method=method, step=max(0, number), refused=(), cause=loss.cause or fault,
            lost_s=loss.lost_s, lost_steps=loss.num_steps, time_s=at_s,
        )  # fmt: skip
        self.rows = [*(r for r in self.rows if not is_later(r, method, number)), row]
        return row


def test_before_a_training_there_is_none() -> None:
    assert goodput([]) is None and goodput([step(1, 5.0)]) is None


def test_an_unbroken_run_loses_its_start_alone() -> None:
    run = Run()
    run.start(100)
    assert run.resume(-1, 110).cause == "start"
    run.steps(*range(1, 91), from_s=110)
    found = goodput(run.rows)
    assert found is not None
    assert (found.wall_s, found.lost_s, found.restarts) == (100, {"start": 10}, {})
    assert found.frac == pytest.approx(0.9)


def test_a_fault_costs_the_pause_and_the_steps_that_are_made_again() -> None:
    run = Run()
    run.start(100)
    run.resume(-1, 110)
    run.steps(1, 2, 3, 4, 5, 6, from_s=110)  # 6 at 116
    row = run.resume(4, 130, fault="node")  # 4 was done at 114
    assert (row.cause, row.lost_s, row.lost_steps) == ("node", 16, 2)
    run.steps(5, 6, 7, from_s=130)
    found = goodput(run.rows)
    assert found is not None and found.wall_s == 33
    assert found.lost_s == {"start": 10, "node": 16} and found.restarts == {"node": 1}
    # Every second is a step that counts, or lost: 7 steps of a second.
    assert found.wall_s - sum(found.lost_s.values()) == 7


def test_a_second_fault_before_a_new_checkpoint_is_counted_on_its_own() -> None:
    run = Run()
    run.start(0)
    run.resume(-1, 10)
    run.steps(1, 2, 3, from_s=10)
    run.resume(2, 20)
    run.steps(3, 4, from_s=20)
    row = run.resume(2, 40, fault="error")
    assert row.lost_s == 20 and row.lost_steps == 2  # from the first resume on
    run.steps(3, from_s=40)
    found = goodput(run.rows)
    assert found is not None and found.restarts == {"worker": 1, "error": 1}
    assert found.wall_s - sum(found.lost_s.values()) == 3


def test_a_fault_before_the_first_checkpoint_loses_all_since_the_start() -> None:
    run = Run()
    run.start(0)
    run.resume(-1, 10)
    run.steps(1, 2, from_s=10)
    row = run.resume(-1, 30)
    assert (row.lost_s, row.lost_steps) == (30, 2)  # the line of the start is gone with the rest
    run.steps(1, from_s=30)
    found = goodput(run.rows)
    assert found is not None and found.lost_s == {"worker": 30} and found.wall_s == 31


def test_the_pause_before_a_resume_by_hand_is_nobodys() -> None:
    run = Run()
    run.start(0)
    run.resume(-1, 10)
    run.steps(1, 2, 3, from_s=10)  # 3 at 13
    run.start(1000)
    row = run.resume(2, 1010)
    assert (row.cause, row.lost_s, row.lost_steps) == ("resume", 10 + 1, 1)
    run.steps(3, from_s=1010)
    found = goodput(run.rows)
    assert found is not None
    # What came after step 2 is gone with its lines, and in neither.
    assert found.wall_s == (12 - 0) + (1011 - 1000)


def test_the_next_method_begins_where_the_one_before_ended() -> None:
    run = Run()
    run.start(0)
    run.resume(-1, 10)
    run.steps(1, 2, from_s=10)
    row = run.resume(-1, 15, method="simclr")
    assert (row.cause, row.lost_s) == ("start", 3)
    both, own = goodput(run.rows), goodput(run.rows, method="simclr")
    assert both is not None and own is not None
    assert both.lost_s == {"start": 13} and own.lost_s == {"start": 3}


def test_rows_of_older_records_cost_nothing_that_is_known() -> None:
    old = RestoreRow(method="sdclr", step=3, refused=(), time_s=9.0)
    found = goodput([began(0.0), step(3, 4.0), old])
    assert found is not None and found.lost_s == {} and found.frac == 1


def test_what_says_more_about_a_fault_wins_and_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path)
    assert faults.take(run) is None
    for cause in ("worker", "node", "error"):
        faults.note(run, cause)
    assert faults.take(run) == "node" and faults.take(run) is None
    faults.note(run, "reclaimed")
    faults.note(run, "node")
    monkeypatch.setattr(faults, "OLD_S", 0.0)
    assert faults.take(run) is None  # an old one is of no restart any more


def test_a_node_that_is_known_to_be_dead_later_was_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for later, cause in ((0, "worker"), (1, "node")):
        monkeypatch.setattr(faults, "_dead_nodes", lambda: 0)
        faults.note(str(tmp_path), "worker")
        monkeypatch.setattr(faults, "_dead_nodes", lambda later=later: later)
        assert faults.take(str(tmp_path)) == cause


def test_the_way_in_which_a_worker_ended_is_told_apart() -> None:
    from ray.exceptions import NodeDiedError, RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    def lost(text: str, *, preempted: bool = False) -> Exception:
        error = RayActorError("0" * 32, text, preempted=preempted)
        return WorkerHealthCheckFailedError("lost", error)

    peer = RuntimeError("gloo: connection closed by peer")
    process = lost("The actor died: its worker process has died.")
    node = lost("The actor died because its node has died.")
    assert faults.cause_of([ValueError("a node has died")]) == "error"
    assert faults.cause_of([peer]) == "worker" and faults.cause_of([peer, process]) == "worker"
    assert faults.cause_of([peer, ValueError("mine")]) == "error"
    assert faults.cause_of([process, ValueError("mine")]) == "worker"
    assert faults.cause_of([peer, node]) == "node" == faults.cause_of([NodeDiedError("gone")])
    assert faults.cause_of([node, lost("its node has died", preempted=True)]) == "reclaimed"


def test_the_controller_leaves_the_cause(tmp_path: Path) -> None:
    notes = faults.FaultNotes(str(tmp_path))
    notes.after_exception(None, {0: RuntimeError("gloo"), 1: ValueError("mine")})
    assert faults.take(str(tmp_path)) == "error"
