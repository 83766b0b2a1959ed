"""The command line: its words, and the one clear message for each wrong one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.command_line import Command, parse
from pipeline.cli.words import FLAGS, OWN_WORDS, SECTIONS_OF, STAGES
from pipeline.console import program
from pipeline.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def test_nothing_means_everything() -> None:
    assert parse([]) == Command("all", None, (), None, False)


def test_words_in_any_order() -> None:
    words = ["train.epochs=3", "train", "--config", "a.yaml", "run.seed=1", "--dry-run"]
    expected = Command("train", "a.yaml", ("train.epochs=3", "run.seed=1"), None, True)
    assert parse(words) == expected
    assert parse(["--resume", "runs/x", "evaluate"]).resume == "runs/x"


def test_report_takes_runs_to_compare() -> None:
    assert parse(["report", "runs/a", "b", "c"]).runs == ("runs/a", "b", "c")
    assert parse(["report", "--resume", "runs/a"]).runs == ()


def test_words_of_one_stage() -> None:
    assert parse(["evaluate", "a", "b"]).runs == ("a", "b")
    assert parse(["evaluate", "--checkpoint", "w.pt"]).checkpoint == "w.pt"
    mine = parse(["mine", "--resume", "r", "--data", "s3://b/d", "--set", "test"])
    assert (mine.data, mine.set_name, mine.resume) == ("s3://b/d", "test", "r")
    embed = parse(["embed", "--checkpoint", "w.pt", "--set", "probe", "--dtype", "float16"])
    assert (embed.checkpoint, embed.set_name, embed.dtype) == ("w.pt", "probe", "float16")
    curate = parse(["curate", "--similarity", "1", "--keep", "1"])
    assert (curate.similarity, curate.keep) == (1.0, 1)
    assert parse(["train", "--extend", "r", "train.epochs=9"]).extend == "r"


@pytest.mark.parametrize(
    ("words", "error_id"),
    [
        (["mine", "--checkpoint", "x"], "E-CONFIG-222"),
        (["evaluate", "--data", "x"], "E-CONFIG-222"),
        (["--extend", "x"], "E-CONFIG-222"), (["train", "--set", "val"], "E-CONFIG-222"),
        (["mine", "--dtype", "float16"], "E-CONFIG-222"),
        (["embed", "--dtype", "int8"], "E-CONFIG-001"),
        (["mine", "--set", "vall"], "E-CONFIG-001"), (["--help-keys", "trian"], "E-CONFIG-221"),
        (["train", "--extend", "x", "--resume", "y"], "E-CONFIG-223"),
        (["evaluate", "a"], "E-CONFIG-005"),
        (["evaluate", "a", "b", "--resume", "c"], "E-CONFIG-004"),
        (["evaluate", "a", "b", "--checkpoint", "c"], "E-CONFIG-004"),
        (["mine", "a"], "E-CONFIG-002"),
        (["curate", "--similarity", "1.5"], "E-CONFIG-661"),
        (["curate", "--similarity", "0"], "E-CONFIG-661"),
        (["curate", "--keep", "0"], "E-CONFIG-662"), (["curate", "--keep=-3"], "E-CONFIG-662"),
    ],
)  # fmt: skip
def test_words_that_do_not_go_together_are_refused(words: list[str], error_id: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(words)
    assert error.value.id == error_id


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_has_its_own_help(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse([stage, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and stage in text
    for word, (stages, _, _) in OWN_WORDS.items():
        assert (word in text) == (stage in stages or stage == "all"), word
    for section in SECTIONS_OF.get(stage, ()):
        assert f"\n{section}: " in text


def test_keys_of_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help-keys", "augment"])
    text = capsys.readouterr().out
    assert "augment.crop_px" in text and "train.epochs" not in text


@pytest.mark.parametrize(
    ("called", "shown"),
    [("/usr/bin/sdclr", "sdclr"), ("pipeline/run.py", "python pipeline/run.py"),
     ("../pipeline/run.py", "python ../pipeline/run.py")],
)  # fmt: skip
def test_messages_name_the_program_as_it_was_called(
    called: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert program() == shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "runs/a"], "a comparison needs two runs or more"),
        (["report", "a", "a"], "a comparison needs two runs or more, each once"),
        (["report", "a", "b", "run.seed=1"], "a comparison takes the names of runs only"),
        (["report", "a", "b", "--resume", "c"], "a comparison takes the names of runs only"),
        (["trian"], "'trian' is neither a stage nor section.key=value; did you mean train?"),
        (["train", "report"], "one stage at a time, got train, report"),
        (["--epochs", "3"], "unrecognized arguments: --epochs"),
        (["--config"], "expected one argument"),
        (["train.epochs"], "'train.epochs' is neither a stage nor section.key=value"),
    ],
)
def test_wrong_words_are_explained(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(words)
    assert message in error.value.what and error.value.todo


def run_help(flag: str) -> str:
    result = subprocess.run(
        [sys.executable, str(ROOT / "pipeline" / "run.py"), flag],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    return result.stdout


def test_help_names_every_stage_and_flag_and_works_from_any_folder() -> None:
    text = run_help("--help")
    assert all(word in text for word in (*STAGES, *FLAGS))


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "pipeline", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert all(word in result.stdout for word in (*STAGES, *FLAGS))


def test_help_keys_lists_the_schema() -> None:
    text = run_help("--help-keys")
    assert "sdclr.prune_ratio" in text and "0.9" in text and "fraction of prunable" in text


def test_help_starts_without_torch_or_ray() -> None:
    code = (
        "import sys; sys.argv = ['run.py', '--help']\n"
        "import pipeline.run\n"
        "try: pipeline.run.main()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'ray', 'pyarrow'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    )
