"""The command line: its words, and the one clear message for each wrong one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.command_line import FLAGS, STAGES, Command, parse
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


def test_help_keys_lists_the_schema() -> None:
    text = run_help("--help-keys")
    assert "sdclr.prune_ratio" in text and "0.9" in text and "fraction of convolution" in text


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
