from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import ConfigError, DataError, TrainingError
from pipeline.record import keeper, provenance
from pipeline.record.keeper import RunRecord, read_run
from pipeline.record.metrics import read_metrics, read_rows, truncate_metrics
from pipeline.record.rows import MaskRow, StageRow, StepRow
from pipeline.record.run import RunAlarm, describe, end_of
from pipeline.redact import redact, redact_tree
from tests.refusals import raises

SECRET = "hunter2-Zq81"
STEP: dict[str, Any] = {
    "kind": "step", "stage": "train", "method": "sdclr", "seed": 0, "epoch": 0, "step": 1,
    "num_steps": 9, "loss": 4.2, "lr": 0.1, "temperature": 0.2, "grad_norm": 1.0,
    "images_per_s": 10.0, "data_wait_frac": 0.0, "parts_s": {"wait": 0.1}, "flops_per_s": 2.0,
    "roofline_frac": None, "time_s": 1.0,
}  # fmt: skip
NOT_NEEDED = {"kind", "stage", "parts_s", "flops_per_s", "roofline_frac"}  # older lines lack some
MASK: dict[str, Any] = {
    "kind": "mask", "stage": "train", "method": "sdclr", "epoch": 0, "step": 0,
    "prune_ratio": 0.9, "kept_frac": {"conv1.weight": 0.5}, "time_s": 1.0,
}  # fmt: skip


def new_record(folder: Path, **more: Any) -> RunRecord:
    return RunRecord.create(str(folder), name="demo", config_hash="ab", seed=3, **more)


def write_rows(folder: Path, *rows: dict[str, Any] | str) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def some_error() -> TrainingError:
    return TrainingError("E-TRAIN-999", "the loss is not finite", where="step 12", todo="lower lr")


def alarm(level: str, method: str = "sdclr") -> RunAlarm:
    return RunAlarm.model_validate(
        {"method": method, "name": "collapse", "level": level, "text": "bad", "change": "rest"}
    )


def test_record_has_the_fields_of_its_schema(tmp_path: Path) -> None:
    new_record(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["schema_version"] == 2 and content["status"] == "running"
    assert {"run", "config_hash", "command", "seed", "started_utc", "data", "stages"} <= set(
        content
    )
    assert {"python", "torch", "torchvision", "ray", "pyarrow", "sdclr"} <= set(content["versions"])
    assert set(content["hardware"]) == {"platform", "cpu_count", "memory_bytes", "gpus"}
    assert set(content["git"]) == {"commit", "dirty"}
    assert content["started_utc"].endswith("+00:00")


def test_create_refuses_an_existing_run(tmp_path: Path) -> None:
    new_record(tmp_path)
    with pytest.raises(ConfigError) as caught:
        new_record(tmp_path)
    assert caught.value.id == "E-CONFIG-032" and "--resume" in caught.value.todo


def end(record: RunRecord, stage: str, error: BaseException | None, *alarms: RunAlarm) -> None:
    with suppress(BaseException), record.stage(stage) as ended:
        ended.alarms = alarms
        if error is not None:
            raise error


KILL, BREAK = SystemExit(143), KeyboardInterrupt()


@pytest.mark.parametrize(
    ("tries", "status", "exit_code"),
    [
        ([("train", None), ("evaluate", None)], "complete", None),
        ([("train", some_error())], "failed", 6),
        ([("train", BREAK)], "interrupted", 130),
        ([("train", KILL)], "interrupted", 143),
        ([("train", OSError("no"))], "failed", 1),
        ([("train", some_error()), ("train", None)], "complete", None),
        ([("train", None), ("evaluate", KILL)], "interrupted", 143),
        ([("train", None), ("evaluate", BREAK), ("evaluate", None)], "complete", None),
        ([("train", None), ("evaluate", None), ("evaluate", BREAK)], "interrupted", 130),
        ([("train", some_error()), ("evaluate", BREAK)], "failed", 6),
        ([("train", some_error()), ("mine", None), ("report", None)], "failed", 6),
        ([("train", None), ("mine", some_error()), ("export", KILL)], "complete", None),
        ([("tune", KILL), ("tune", None)], "complete", None),
    ],
)
def test_the_last_try_of_each_stage_counts(
    tmp_path: Path,
    tries: list[tuple[str, BaseException | None]],
    status: str,
    exit_code: int | None,
) -> None:
    new_record(tmp_path).finish()
    for stage, error in tries:
        record = RunRecord.open(str(tmp_path))
        end(record, stage, error)
        expected = end_of(error, ())
        assert read_run(str(tmp_path)).stages[stage].status == expected
    run = read_run(str(tmp_path))
    assert run.status == status
    assert (run.error.exit_code if run.error else None) == exit_code


def test_a_run_is_running_from_its_start_to_its_end(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    for stage in ("train", "evaluate"):
        with record.stage(stage):
            assert read_run(str(tmp_path)).stages[stage].status == "running"
        assert read_run(str(tmp_path)).status == "running"  # the command goes on
    record.finish()
    assert read_run(str(tmp_path)).status == "complete"
    with record.stage("evaluate"):  # a later command
        assert read_run(str(tmp_path)).status == "running"
    assert read_run(str(tmp_path)).status == "complete"


@pytest.mark.parametrize(
    ("levels", "status"),
    [
        ((), "complete"),
        (("warning",), "complete"),
        (("warning", "alarm"), "complete, with alarms"),
    ],
)
def test_alarms_are_part_of_the_state(tmp_path: Path, levels: tuple[str, ...], status: str) -> None:
    record = new_record(tmp_path)
    end(record, "train", None, *(alarm(level) for level in levels))
    end(record, "evaluate", None)
    record.finish()
    run = read_run(str(tmp_path))
    assert run.status == run.stages["train"].status == status
    assert [a.level for a in run.alarms] == sorted(levels)
    end(record, "train", None)  # a better training
    assert read_run(str(tmp_path)).status == "complete"


def test_an_error_between_two_stages_is_kept_once(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    end(record, "train", None)
    record.fail(DataError("E-DATA-999", "gone", where="x", todo="y"), stage="train")
    run = read_run(str(tmp_path))
    assert run.status == "failed" and run.error is not None and run.error.id == "E-DATA-999"
    record.resume(["run.py", "--resume", "x"])
    end(record, "train", some_error())
    record.fail(OSError("what that error led to"), stage="train")
    run = read_run(str(tmp_path))
    assert run.error is not None and run.error.id == "E-TRAIN-999"
    assert [resume.command for resume in run.resumes] == ["run.py --resume x"]


def test_times_are_those_of_the_last_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, clock = new_record(tmp_path), iter([0.0, 100.0, 200.0, 207.0, 300.0, 301.0])
    time = SimpleNamespace(monotonic=lambda: next(clock), time=lambda: 0.0)
    monkeypatch.setattr(keeper, "time", time)
    for error in (BREAK, None):
        end(record, "train", error)
    end(record, "mine", OSError())
    assert read_run(str(tmp_path)).timings_s == {"train": 7.0, "mine": 1.0}
    events = [(row.stage, row.event) for row in read_rows(str(tmp_path), StageRow)]
    assert events == [("train", "start"), ("train", "end")] * 2 + [
        ("mine", "start"),
        ("mine", "end"),
    ]


def test_two_processes_keep_stages_of_one_run(tmp_path: Path) -> None:
    new_record(tmp_path).finish()
    mining, evaluation = (RunRecord.open(str(tmp_path)) for _ in range(2))
    with mining.stage("mine"), evaluation.stage("evaluate"):
        pass
    assert set(read_run(str(tmp_path)).stages) == {"mine", "evaluate"}


@pytest.mark.parametrize(("error", "code"), [(BREAK, 130), (KILL, 143), (OSError("no"), 1)])
def test_any_exception_gets_an_exit_code(error: BaseException, code: int) -> None:
    assert describe(error).exit_code == code


@pytest.mark.promise("S11")
def test_broken_records_are_named(tmp_path: Path) -> None:
    for text, id in (("", "E-DATA-086"), ('{"schema_version": 1}', "E-DATA-087")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(DataError) as caught:
            RunRecord.open(str(tmp_path))
        assert caught.value.id == id and caught.value.where.endswith("run.json")


# --- secrets


def record_text(folder: Path) -> str:
    record = new_record(folder, argv=["run.py", f"s3.x={SECRET}", f"s3://me:{SECRET}@host/b"])
    error = DataError(
        "E-DATA-999", f"denied for {SECRET}", where=f"https://u:{SECRET}@h/p", todo=SECRET
    )
    record.fail(error, stage="train")
    return (folder / "run.json").read_text()


@pytest.mark.promise("S5")
def test_secrets_are_not_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = record_text(tmp_path)
    assert SECRET not in text and "***" in text


def test_a_place_that_shares_a_word_with_a_secret_stays_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_NAME", "imagenet")
    record = new_record(tmp_path, argv=["run.py", "data.path=imagenet"])
    record.set_data(uri="/data/imagenet-ab12", manifest_hash="cd", name="x")
    run = read_run(str(tmp_path))
    assert run.data is not None and run.data.uri == "/data/imagenet-ab12"
    assert "imagenet" not in run.command


@pytest.mark.promise("S5", control=True)
def test_the_search_for_secrets_can_find_one(tmp_path: Path) -> None:
    assert SECRET in record_text(tmp_path)  # not in the environment, so nobody knows it is one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://key:pass@host/b", "s3://***@host/b"),
        ("see https://host/a@b and me@host", "see https://host/a@b and me@host"),
        ("aws_secret_access_key=abcd x", "aws_secret_access_key=*** x"),
        ("password: abcd", "password: ***"),
        ("https://h/?X-Amz-Signature=12ab&y=1", "https://h/?X-Amz-Signature=***&y=1"),
        ("lr=0.5 prune_ratio: 0.9", "lr=0.5 prune_ratio: 0.9"),
    ],
)
def test_redact_knows_urls_and_assignments(text: str, expected: str) -> None:
    assert redact(text, {}) == expected


def _texts_of_the_code() -> Iterator[str]:
    root = Path(__file__).resolve().parent.parent
    for path in (*(root / "pipeline").rglob("*.py"), *(root / "sdclr").rglob("*.py")):
        nodes = [*ast.walk(ast.parse(path.read_text()))]
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) not in docstrings:
                    yield node.value


def test_no_message_of_the_code_reads_like_a_secret() -> None:
    texts = [*_texts_of_the_code()]
    assert len(texts) > 1000
    assert [text for text in texts if redact(text, {}) != text] == []
    assert redact("check AWS_SECRET_ACCESS_KEY: it is wrong", {}).endswith(": *** is wrong")


def test_redact_masks_the_longer_of_two_nested_secrets_and_the_quoted_form() -> None:
    env = {"A_TOKEN": "abcd", "B_TOKEN": "abcd/efgh", "PATH": "/usr/bin", "TOKENIZERS": "false"}
    assert redact("abcd/efgh abcd%2Fefgh /usr/bin false", env) == "*** *** /usr/bin false"
    tree = {"a": ["abcd", 1, None, {"b": "xabcdx"}]}
    assert redact_tree(tree, env) == {"a": ["***", 1, None, {"b": "x***x"}]}


# --- provenance


def run_git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_git_state_of_a_checkout_and_of_a_plain_folder(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) == provenance.Git(commit=None, dirty=None)
    run_git(tmp_path, "init", "-q")
    run_git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
    clean = provenance.git_state(tmp_path)
    assert clean.commit is not None and len(clean.commit) == 40 and clean.dirty is False
    (tmp_path / "new.py").write_text("")
    assert provenance.git_state(tmp_path) == clean.model_copy(update={"dirty": True})
    inner = tmp_path / "site-packages"
    inner.mkdir()
    assert provenance.git_state(inner).commit is None  # somebody else's repository


def test_record_and_report_start_without_torch() -> None:
    code = "import sys, pipeline.record.keeper, pipeline.console, pipeline.report.page; "
    code += "print('torch' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# --- metrics


def test_no_file_means_no_rows(tmp_path: Path) -> None:
    assert read_metrics(str(tmp_path)) == []
    assert truncate_metrics(str(tmp_path), "sdclr", 0) == 0


def test_rows_come_back_in_order_and_filtered(tmp_path: Path) -> None:
    rows = [MASK, STEP, {**STEP, "step": 2}, {**STEP, "method": "simclr"}]
    write_rows(tmp_path, *rows)
    found = read_metrics(str(tmp_path))
    assert [row.model_dump() for row in found] == rows
    assert read_rows(str(tmp_path), StepRow, method="simclr") == [found[3]]
    assert read_rows(str(tmp_path), MaskRow) == [found[0]]


def test_a_row_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    for row in ({"kind": "other"}, {"loss": 1.0}, []):
        write_rows(tmp_path, STEP, json.dumps(row))
        with pytest.raises(DataError) as caught:
            read_metrics(str(tmp_path))
        assert caught.value.id == "E-DATA-084" and caught.value.where.endswith("line 2")


def test_a_diverged_loss_may_be_null(tmp_path: Path) -> None:
    write_rows(tmp_path, {**STEP, "loss": None, "grad_norm": None})
    (row,) = read_rows(str(tmp_path), StepRow)
    assert row.loss is row.grad_norm is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("loss", "4.2"), ("loss", True), ("lr", None), ("step", 1.5), ("lr", float("nan")),
     ("method", 3)],
)  # fmt: skip
@pytest.mark.promise("O1")
def test_a_wrong_type_is_refused_with_its_line(tmp_path: Path, key: str, value: object) -> None:
    write_rows(tmp_path, MASK, {**STEP, key: value})
    with raises("E-DATA-084", f"step.{key}") as caught:
        read_metrics(str(tmp_path))
    assert caught.value.where.endswith("line 2")


@pytest.mark.parametrize("key", sorted(STEP.keys() - NOT_NEEDED))
@pytest.mark.promise("O1")
def test_a_missing_key_is_refused(tmp_path: Path, key: str) -> None:
    write_rows(tmp_path, {k: v for k, v in STEP.items() if k != key})
    with raises("E-DATA-084", f"step.{key}"):
        read_metrics(str(tmp_path))


@pytest.mark.promise("O1", control=True)
def test_plain_json_takes_what_the_schema_refuses(tmp_path: Path) -> None:
    write_rows(tmp_path, {**STEP, "loss": "4.2"}, {**STEP, "step": 1})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == ["4.2", STEP["loss"]]


@pytest.mark.promise("O1")
def test_steps_rise_per_method_and_seed(tmp_path: Path) -> None:
    write_rows(tmp_path, STEP, {**STEP, "seed": 1}, {**STEP, "method": "simclr"})
    assert len(read_metrics(str(tmp_path))) == 3
    write_rows(tmp_path, STEP, {**STEP, "step": 2}, {**STEP, "step": 2})
    with raises("E-DATA-084") as caught:
        read_metrics(str(tmp_path))
    assert caught.value.where.endswith("line 3")


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_torn_last_line_is_skipped_and_a_torn_middle_line_is_not(
    tmp_path: Path, cut: int
) -> None:
    file = tmp_path / "metrics.jsonl"
    line = json.dumps({**STEP, "step": 2}).encode()
    whole = json.dumps(STEP).encode() + b"\n" + line[:cut]
    file.write_bytes(whole)
    assert [row.model_dump() for row in read_metrics(str(tmp_path))] == [STEP]
    file.write_bytes(whole + b"\n" + json.dumps({**STEP, "step": 3}).encode() + b"\n")
    with raises("E-DATA-084") as caught:
        read_metrics(str(tmp_path))
    assert caught.value.where.endswith("line 2")


def test_truncate_drops_later_rows_of_one_method_and_a_torn_tail(tmp_path: Path) -> None:
    stage = {"kind": "stage", "stage": "train", "event": "start", "wall_s": 0.0, "time_s": 1.0}
    later = {**STEP, "step": 5}
    other = {**later, "method": "simclr"}
    write_rows(tmp_path, stage, MASK, STEP, {**MASK, "step": 4, "epoch": 1}, later, other, '{"ki')
    before = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    assert truncate_metrics(str(tmp_path), "sdclr", 1) == 3
    found = [row.model_dump() for row in read_metrics(str(tmp_path))]
    assert found == [stage, MASK, STEP, other]
    after = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    assert set(after) <= set(before)  # kept lines keep their bytes
    assert truncate_metrics(str(tmp_path), "sdclr", 1) == 0
