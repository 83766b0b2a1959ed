"""What an invocation may do to the record of a run that exists already."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import save_file

from pipeline.cli.command_line import Command
from pipeline.cli.resolve import resolve
from pipeline.cli.session import Session, local_roots, plain_errors
from pipeline.cli.stages import Stages
from pipeline.config import Config
from pipeline.config.file import config_hash, dump_config, load_config
from pipeline.console import Console
from pipeline.dataset.manifest import sealed, write_manifest
from pipeline.errors import DataError, PipelineError, TrainingError
from pipeline.model import build
from pipeline.record.folder import existing_run
from pipeline.record.keeper import RunRecord, read_run
from pipeline.record.run import RunAlarm
from tests.refusals import raises
from tests.test_manifest import some_manifest


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run whose training failed, on a small data set."""
    data, uri = tmp_path / "data", tmp_path / "runs" / "demo-1"
    manifest = some_manifest(data)
    write_manifest(str(data), manifest)
    uri.mkdir(parents=True)
    (uri / "config.yaml").write_text(dump_config(Config()))
    record = RunRecord.create(
        str(uri), name="demo-1", config_hash=config_hash(Config()), seed=0, argv=["run.py"]
    )
    record.set_data(uri=str(data), manifest_hash=manifest.hash, name=manifest.name)
    error = TrainingError("E-TRAIN-999", "the loss is nan", where="step 3", todo="lower train.lr")
    record.fail(error, stage="train")
    return str(uri)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def session(
    stage: str,
    run: str,
    stack: ExitStack,
    *words: str,
    stream: io.StringIO | None = None,
    **more: Any,
) -> Session:
    command = Command(stage, None, words, resume=run, **{"dry_run": False, **more})
    return Session(command, resolve(command), Console(stream), stack)


def test_a_run_that_is_not_there_is_told_by_its_uri(tmp_path: Path) -> None:
    typo = (tmp_path / "typo").as_uri()
    with raises("E-CONFIG-031") as caught:
        existing_run(typo, "runs")
    assert caught.value.where == typo


@pytest.mark.promise("R7")
def test_a_run_of_the_older_order_of_streamed_images_is_refused_by_name(
    run: str, stack: ExitStack
) -> None:
    file = Path(run) / "config.yaml"
    text = file.read_text()
    assert session("train", run, stack, dry_run=True)  # control: the same without the key
    file.write_text(text.replace("feed:\n", "feed:\n  window_shards: 8\n"))
    with raises("E-CONFIG-640", "feed.window_shards"):
        session("train", run, stack)


def status(run: str) -> tuple[str, bool]:
    found = read_run(run)
    return found.status, found.error is not None


@pytest.mark.parametrize("stage", ["evaluate", "export", "mine", "report"])
def test_looking_at_a_failed_run_does_not_make_it_complete(
    stage: str, run: str, stack: ExitStack
) -> None:
    one = session(stage, run, stack)
    one.open_record()
    with one.stage(stage):
        pass
    one.finish()
    assert status(run) == ("failed", True)
    found = read_run(run)
    assert found.resumes == () and found.stages[stage].status == "complete"


def test_resuming_it_does(run: str, stack: ExitStack) -> None:
    one = session("train", run, stack)
    one.open_record()
    assert status(run)[0] == "running" and len(read_run(run).resumes) == 1
    with one.stage("train"):
        pass
    one.finish()
    assert status(run) == ("complete", False)


def test_a_stage_that_fails_leaves_the_runs_own_end(
    run: str, stack: ExitStack, tmp_path: Path
) -> None:
    one = session("mine", run, stack, data=str(tmp_path / "typo"))
    one.open_record()
    with pytest.raises(PipelineError), one.ends_recorded():
        Stages(one).mine()
    assert status(run) == ("failed", True)
    found = read_run(run)
    assert found.stages["mine"].status == "failed"
    assert found.error is not None and found.error.id == "E-TRAIN-999"


def test_only_stages_that_did_their_work_are_done(run: str, stack: ExitStack) -> None:
    one = session("mine", run, stack)
    one.open_record()
    for name, error in (("export", None), ("mine", OSError("no Ray")), ("embed", SystemExit(143))):
        with suppress(OSError, SystemExit), one.stage(name):
            if error is not None:
                raise error
    found = read_run(run)
    assert list(found.done_s) == ["export"]
    assert list(found.timings_s) == ["train", "export", "mine", "embed"]  # control: all have ended


@pytest.mark.parametrize(
    ("error", "text"),
    [(KeyboardInterrupt(), "it was interrupted"),
     (SystemExit(143), "it was interrupted: terminated by a signal")],
)  # fmt: skip
def test_how_a_run_ended_is_said_once(
    error: BaseException, text: str, run: str, stack: ExitStack
) -> None:
    one = session("train", run, stack)
    one.open_record()
    with suppress(type(error)), one.ends_recorded(), one.stage("train"):
        raise error
    stream = io.StringIO()
    session("train", run, stack, stream=stream).open_record()
    assert any(line.endswith(text) for line in stream.getvalue().splitlines())


@pytest.mark.parametrize(
    ("error", "end"),
    [(KeyboardInterrupt(), "interrupted"), (SystemExit(143), "interrupted"),
     (OSError("disk"), "failed")],
)  # fmt: skip
@pytest.mark.parametrize("is_in_a_stage", [True, False])
def test_whatever_ends_the_invocation_is_in_the_record(
    run: str, stack: ExitStack, error: BaseException, end: str, is_in_a_stage: bool
) -> None:
    one = session("train", run, stack)
    one.open_record()
    within = one.stage("train") if is_in_a_stage else nullcontext()
    with pytest.raises(type(error)), one.ends_recorded(), within:
        raise error
    found = read_run(run)
    assert found.status == found.stages["train"].status == end


@pytest.mark.parametrize("stage", ["mine", "export"])
@pytest.mark.promise("R36")
def test_alarms_are_said_before_the_models_are_used_and_last(
    stage: str, run: str, stack: ExitStack
) -> None:
    bad = RunAlarm(
        method="sdclr", name="collapse", level="alarm", text="features have collapsed",
        change="lower the learning rate", words=("train.lr_per_256=0.125",),
    )  # fmt: skip
    training = session("train", run, stack)
    training.open_record()
    with training.stage("train") as ended:
        ended.alarms = (bad.model_copy(update={"level": "warning", "words": ()}), bad)
    training.complete()
    assert status(run) == ("complete, with alarms", False)
    stream = io.StringIO()
    one = session(stage, run, stack, stream=stream)
    one.open_record()
    said = stream.getvalue().splitlines()
    assert said[0].startswith("warning: sdclr") and said[1].startswith("ALARM: sdclr")
    command = said[1].split("try: python pipeline/run.py ")[1]
    words = shlex.split(command)
    assert load_config(words[1], words[2:]).train.lr_per_256 == 0.125
    one.finish()
    assert stream.getvalue().splitlines()[-1] == said[1]


def test_folders_that_only_this_machine_may_have_are_found() -> None:
    assert local_roots(Config()) == ["run.root", "data.root"]
    on_s3 = load_config(None, ["run.root=s3://b/runs", "data.root=file:///data"])
    assert local_roots(on_s3) == ["data.root"]


@pytest.mark.promise("R28")
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_run_does_not_go_on_with_other_images(
    stage: str, run: str, stack: ExitStack, tmp_path: Path
) -> None:
    one = session(stage, run, stack)
    one.open_record()
    assert one.dataset.uri == str(tmp_path / "data")
    other = sealed(replace(one.dataset.manifest, name="digits-76543210", hash=""))
    with raises("E-DATA-001") as caught:
        one.use_dataset(one.dataset.uri, other)
    assert "start a new run" in caught.value.todo
    write_manifest(str(tmp_path / "data"), other)
    two = session(stage, run, stack)
    two.open_record()
    with raises("E-DATA-001"):
        assert two.dataset


@pytest.mark.promise("R30")
def test_a_data_set_that_was_moved_is_found_by_its_hash(
    run: str, stack: ExitStack, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "data").rename(elsewhere / "data")
    lost = session("evaluate", run, stack)
    lost.open_record()
    with raises("E-DATA-830") as caught:
        assert lost.dataset
    assert "data.root" in caught.value.todo
    found = session("evaluate", run, stack, f"data.root={elsewhere}")
    found.open_record()
    assert found.dataset.uri == str(elsewhere / "data")
    other = sealed(replace(found.dataset.manifest, name="digits-76543210", hash=""))
    write_manifest(str(elsewhere / "data"), other)  # control: another one of the same name
    wrong = session("evaluate", run, stack, f"data.root={elsewhere}")
    wrong.open_record()
    with pytest.raises(DataError):
        assert wrong.dataset


@pytest.mark.parametrize("how", ["resume", "extend"])
def test_another_seed_of_a_run_made_of_a_run_has_its_configuration(
    how: str, run: str, stack: ExitStack
) -> None:
    command = Command(
        "train", None, ("train.epochs=3",), dry_run=False, **{"resume": None, how: run}
    )
    folder = resolve(Command("train", None, (), resume=run, dry_run=False))
    again = Session(command, folder, Console(io.StringIO()), stack)._again()
    assert shlex.split(again) == ["--config", f"{run}/config.yaml", "run.seed=1"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_run_that_is_not_finished_is_not_extended(dry_run: bool, run: str) -> None:
    command = Command("train", None, ("train.epochs=9",), resume=None, extend=run, dry_run=dry_run)
    with raises("E-CONFIG-910", "sdclr") as caught:
        resolve(command)
    assert caught.value.todo.endswith(f"--resume {shlex.quote(run)}")
    config = Config()
    for method in config.train.methods:  # control: with its last weights it is extended
        backbone = build.new_network(config, method).backbone.state_dict()
        place = Path(run) / "models" / method / "backbone.safetensors"
        place.parent.mkdir(parents=True)
        save_file({n: t.contiguous() for n, t in backbone.items()}, place)
    folder = resolve(command)
    assert folder.is_new and folder.config.train.epochs == 9


@pytest.mark.parametrize(
    ("stage", "has_page"), [("evaluate", True), ("mine", True), ("export", False)]
)
def test_the_page_follows_what_is_done_to_a_run(
    stage: str, has_page: bool, run: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stages, stage, lambda _: None)
    Stages(session(stage, run, stack, stream=io.StringIO())).run()
    assert (Path(run) / "report.html").exists() is has_page


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_while_ray_is_half_imported_stays_one(
    stop: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.exceptions", None)
    with pytest.raises(type(stop)), plain_errors():
        raise stop
    # The control: what is no interruption is looked at, and Ray with it.
    with pytest.raises((ImportError, AttributeError)), plain_errors():
        raise RuntimeError
