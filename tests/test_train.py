"""The driver's side of training: budgets, deadlines, and whose words are heard."""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from pipeline import storage
from pipeline.config.file import load_config
from pipeline.config.stages import Train
from pipeline.console import Console
from pipeline.errors import ConfigError, TrainingError
from pipeline.record import metrics
from pipeline.train import driver, progress, stopping
from pipeline.train.faults import FaultNotes
from pipeline.train.method_run import MethodRun, is_due
from pipeline.train.progress import ProgressView
from pipeline.train.torch_trainer import Workers, returned, torch_trainer
from tests.refusals import raises


def console() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(stream, stream), stream


def some_step(step: int) -> dict[str, Any]:
    return {
        "kind": "step", "stage": "train", "method": "sdclr", "seed": 0, "epoch": 0, "step": step,
        "num_steps": 100, "loss": 1.0, "lr": 0.1, "temperature": 0.2, "grad_norm": 1.0,
        "images_per_s": 9.0, "data_wait_frac": 0.0, "time_s": 0.0,
    }  # fmt: skip


def write_step(run: Path, step: int) -> None:
    with storage.LineLog(metrics.metrics_uri(str(run))) as log:
        log.append(some_step(step))


ONE = Workers(1, cpus=1, gpus=0)


def fit(outcomes: list[Any], *overrides: str) -> tuple[Any, str]:
    """`_fit_again` over trainers that do these things, one after the other."""

    def trainer(*_: Any, **__: Any) -> Any:
        def run() -> Any:
            outcome = outcomes.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return SimpleNamespace(fit=run)

    config = load_config(None, overrides)
    job = driver.Job("", "", "/nowhere/run", "", None, "cpu", 1)
    shown, stream = console()
    view = ProgressView(config, job.run_uri, shown)
    with mock.patch.object(driver, "torch_trainer", trainer), mock.patch.dict(os.environ):
        try:
            return driver._fit_again(config, job, ONE, {}, view, shown), stream.getvalue()
        except TrainingError as error:
            return error, stream.getvalue()


def controller_error() -> BaseException:
    from ray.train import ControllerError

    return ControllerError(OSError("three answers of 503 in a row"))


def its_process(_: dict[str, Any]) -> dict[str, Any]:
    return {"error": None, "process": os.getpid()}


def test_one_worker_of_this_machine_may_be_this_process(tmp_path: Path) -> None:
    here = replace(ONE, is_here=True)
    with mock.patch.dict(os.environ):
        trainer = torch_trainer(
            load_config(None), its_process, {}, run_uri=str(tmp_path), workers=here
        )
        assert returned(trainer.fit()) == {"error": None, "process": os.getpid()}


@pytest.mark.promise("R18")
def test_training_begins_again_when_the_controller_failed() -> None:
    fine = SimpleNamespace(return_value={"error": None})
    found, said = fit([controller_error(), controller_error(), fine])
    assert found is fine and said.count("Ray Train failed and starts again") == 2
    assert "three answers of 503" in said


@pytest.mark.promise("R18")
def test_the_budget_for_the_controller_is_finite() -> None:
    outcomes = [controller_error() for _ in range(9)]
    error, _ = fit(outcomes, "train.max_failures=0")
    assert isinstance(error, TrainingError) and "503" in error.what and len(outcomes) == 5


@pytest.mark.promise("R18", control=True)
def test_it_is_the_budget_that_ends_the_tries() -> None:
    outcomes = [controller_error() for _ in range(9)]
    fit(outcomes, "train.max_failures=8")
    assert outcomes == []


@pytest.mark.promise("R18")
def test_a_bug_is_not_tried_again_by_the_driver_and_its_own_trace_is_told() -> None:
    from ray.train import WorkerGroupError

    bug = KeyError("augmentation")
    bug.add_note("on worker 1:\nTraceback\n  File loss.py, line 7")
    failure = WorkerGroupError("wrapped", {0: ConnectionError("peer"), 1: bug})
    error, said = fit([pickle.loads(pickle.dumps(failure))])
    assert isinstance(error, TrainingError) and "KeyError: 'augmentation'" in error.what
    assert "File loss.py, line 7" in said and "wrapped" not in said


@pytest.mark.promise("R18")
@pytest.mark.parametrize("value", ["-1", ".inf", "null"])
def test_no_budget_is_infinite(value: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [f"train.max_failures={value}"])


@pytest.mark.promise("R15")
@pytest.mark.parametrize("key", ["collective_timeout_s", "stop_grace_s"])
@pytest.mark.parametrize("value", ["-1", ".inf", "null"])
def test_no_wait_is_endless(key: str, value: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [f"train.{key}={value}"])


@pytest.mark.promise("R18")
def test_each_budget_reaches_ray_train() -> None:
    config = load_config(None, ["train.max_failures=4", "train.collective_timeout_s=7"])
    workers = Workers(2, cpus=1, gpus=0)
    with mock.patch("ray.train.torch.TorchTrainer") as trainer, mock.patch.dict(os.environ):
        torch_trainer(config, dict, {}, run_uri="/nowhere/run", workers=workers)
    settings = trainer.call_args.kwargs
    failures = settings["run_config"].failure_config
    assert failures.max_failures == 4 and failures.max_preemption_failures == 20
    assert failures.controller_failure_limit == 4 and settings["torch_config"].timeout_s == 7
    assert settings["scaling_config"].num_workers == 2
    (notes,) = settings["run_config"].callbacks
    assert isinstance(notes, FaultNotes)
    assert failures.relax_collectives_on_preemption


@pytest.mark.promise("R15")
@pytest.mark.parametrize(("number", "gpus", "is_on"), [(2, 1, True), (1, 1, False), (2, 0, False)])
def test_hangs_of_nccl_are_looked_for_where_there_is_nccl(
    number: int, gpus: int, is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train.v2._internal.callbacks.nccl_ras import NCCLRASCallback
    from ray.train.v2._internal.constants import ENABLE_NCCL_HANG_DETECTOR_ENV_VAR

    config = load_config(None, ["train.collective_timeout_s=100"])
    workers = Workers(number, cpus=1, gpus=gpus)
    with mock.patch("ray.train.torch.TorchTrainer"), mock.patch.dict(os.environ):
        torch_trainer(config, dict, {}, run_uri="/nowhere/run", workers=workers)
        assert (ENABLE_NCCL_HANG_DETECTOR_ENV_VAR in os.environ) == is_on
        detector = NCCLRASCallback()
    # Before the group's own deadline, so that the ranks are named.
    assert (detector._action, detector._confirm_duration_s) == (
        ("fail", 90.0) if is_on else ("observe", 600.0)
    )


@pytest.mark.promise("R15")
def test_the_barriers_of_ray_train_have_the_deadline_of_the_other_collectives() -> None:
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    config = load_config(None, ["train.collective_timeout_s=7"])
    with mock.patch("ray.train.torch.TorchTrainer"), mock.patch.dict(os.environ):
        torch_trainer(config, dict, {}, run_uri="/nowhere/run", workers=Workers(1, cpus=1, gpus=0))
        assert get_env_vars_to_propagate()["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] == "7"


def watch(outcome: Any, run: Path, shown: Console) -> None:
    config = load_config(None)
    driver._watch(outcome, ProgressView(config, str(run), shown), config, str(run), shown)


STALL_S = driver.STALL_TIMEOUT_S


class Watched:
    """A training on a clock of its own, which a wait for its end moves."""

    def __init__(
        self, run: Path, monkeypatch: pytest.MonkeyPatch, *, step_every_s: float, ends_s: float
    ) -> None:
        self.now_s = self._step_s = 0.0
        self._run, self._every_s, self._step = run, step_every_s, 0
        self.outcome = SimpleNamespace(is_awaited=lambda: self.now_s < ends_s, wait=self._wait)
        clock = SimpleNamespace(monotonic=lambda: self.now_s, time=lambda: self.now_s)
        monkeypatch.setattr(driver, "time", clock)
        monkeypatch.setattr(progress, "time", clock)

    def _wait(self, timeout_s: float) -> None:
        self.now_s += timeout_s
        if self.now_s - self._step_s >= self._every_s:
            self._step, self._step_s = self._step + 1, self.now_s
            write_step(self._run, self._step)


@pytest.mark.promise("R15")
def test_a_run_that_makes_no_step_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_step(tmp_path, 1)
    work = Watched(tmp_path, monkeypatch, step_every_s=1e9, ends_s=1e9)
    with raises("E-TRAIN-004", f"{STALL_S:g} s"):
        watch(work.outcome, tmp_path, console()[0])
    assert STALL_S < work.now_s < STALL_S + 2


@pytest.mark.promise("R15", control=True)
def test_a_run_that_goes_on_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Watched(tmp_path, monkeypatch, step_every_s=STALL_S - 1, ends_s=5 * STALL_S)
    watch(work.outcome, tmp_path, console()[0])
    assert work.now_s >= 5 * STALL_S


@pytest.mark.promise("R19")
@pytest.mark.parametrize("interruption", [SystemExit(143), KeyboardInterrupt()])
def test_the_workers_are_asked_to_save_and_the_interruption_goes_on(
    tmp_path: Path, interruption: BaseException
) -> None:
    """By a real signal: Python 3.11 takes a thread for ended whose `join` a signal broke."""
    done, (shown, stream) = threading.Event(), console()
    config, outcome = load_config(None), driver._Outcome()
    view = ProgressView(config, str(tmp_path), shown)

    def work() -> None:
        with stopping.StopWatch(str(tmp_path)) as stop:
            for step in range(1, 1000):
                write_step(tmp_path, step)
                if stop.is_asked:
                    stop.answer(method="sdclr", step=step)
                    done.wait(20)
                    return
                if view.has_moved and not handled:
                    signal.pthread_kill(main_thread, signal.SIGUSR1)
                done.wait(0.05)

    def handle(*_: object) -> None:
        if not handled:
            handled.append(True)
            raise interruption

    handled, main_thread = list[bool](), threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=outcome.run, args=(work,), daemon=True)
    thread.start()
    try:
        with pytest.raises(type(interruption)):
            driver._watch(outcome, view, config, str(tmp_path), shown)
        assert outcome.is_awaited()
        done.set()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not outcome.is_awaited() and "sdclr is saved at step" in stream.getvalue()


@pytest.mark.promise("R19", control=True)
def test_no_step_is_called_saved_when_no_worker_answers(tmp_path: Path) -> None:
    config = load_config(None, ["train.stop_grace_s=0.3"])
    shown, stream = console()
    driver._save_before_the_end(config, str(tmp_path), shown)
    assert "is saved at step" not in stream.getvalue()
    assert "no checkpoint in time, and none before" in stream.getvalue()


@pytest.mark.promise("R21")
def test_reports_are_due_by_the_step_alone() -> None:
    settings = Train(epochs=7, checkpoint_every_epochs=3, keep_every_epochs=5)
    due = [s for s in range(1, 29) if is_due(s, steps_per_epoch=4, num_steps=28, train=settings)]
    assert due == [12, 20, 24, 28]
    later = [s for s in range(13, 29) if is_due(s, steps_per_epoch=4, num_steps=28, train=settings)]
    assert later == due[1:]  # after a resume as without one


@pytest.mark.promise("R21", control=True)
def test_by_the_clock_ranks_would_report_at_different_steps() -> None:
    """Which is why rank 0 alone saves by the clock, and nobody reports then."""
    rank: Any = SimpleNamespace(config=load_config(None, ["train.checkpoint_every_s=60"]))
    writers: list[Any] = [
        SimpleNamespace(is_busy=False, saved_at_s=time.monotonic() - age_s) for age_s in (61, 59)
    ]
    assert [MethodRun._is_time(rank, writer) for writer in writers] == [True, False]
