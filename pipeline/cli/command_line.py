"""The command line: five words, everything else is a key of the configuration."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from pipeline.errors import ConfigError

STAGES = {
    "all": "ingest, train, evaluate and report, one after the other (the default)",
    "ingest": "source images to verified long-tail shards and a manifest",
    "train": "pre-train every method of train.methods on the ingested shards",
    "evaluate": "score the newest run of this configuration, or the one of --resume",
    "export": "write the trained backbones for use without this project: weights, program, card",
    "mine": "rank every image of a data set by how rare it is; needs no labels",
    "report": "write report.html of that run; with several RUNs: compare them on one page",
    "tune": "search settings by tune.*, on the val set or without labels; again = go on",
}
FLAGS = ("--config", "--resume", "--dry-run", "--help", "--help-keys")
_OVERRIDE = re.compile(r"[A-Za-z_]+(\.[A-Za-z_0-9]+)*=.*", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """Command that the user typed.

    Args:
        stage: one of `STAGES`.
        config_file: YAML file; None = the embedded demo.
        overrides: `section.key=value`, as typed.
        resume: a run to resume: its folder, or its name below run.root.
        dry_run: check and show the plan only.
        runs: of `report`, the runs to compare; empty = the page of one run.
    """

    stage: str
    config_file: str | None
    overrides: tuple[str, ...]
    resume: str | None
    dry_run: bool
    runs: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            "E-CONFIG-001", message, where="command line", todo="see python pipeline/run.py --help"
        )


def parse(argv: Sequence[str]) -> Command:
    """Read the command line; --help and --help-keys print and exit.

    Raises:
        ConfigError: unknown words, with the nearest known one.
    """
    stages = "\n".join(f"  {name:10s}{text}" for name, text in STAGES.items())
    parser = _Parser(
        prog="python pipeline/run.py",
        usage="%(prog)s [STAGE] [--config FILE] [section.key=value ...] [--resume RUN] [--dry-run]"
        "\n       %(prog)s report RUN RUN [RUN ...]",
        description="Self-damaging contrastive learning on long-tailed images, on Ray.\n"
        "Without arguments: the demo, handwritten digits on this machine, a few minutes.\n\n"
        f"stages:\n{stages}",
        epilog="examples:\n"
        "  python pipeline/run.py train.epochs=10 run.seed=1\n"
        "  python pipeline/run.py --config tune_configs/cifar10_lt.yaml preset=official\n"
        "  python pipeline/run.py --config tune_configs/photos.yaml data.path=FOLDER\n"
        "  python pipeline/run.py tune --config tune_configs/sweep_demo.yaml\n\n"
        "RAY_ADDRESS names a cluster to join; without it Ray starts on this machine.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="STAGE | section.key=value")
    parser.add_argument("--config", metavar="FILE", help="YAML file, see tune_configs/")
    parser.add_argument(
        "--resume", metavar="RUN", help="resume this run: the same configuration, exactly"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, do nothing")
    parser.add_argument("--help-keys", action="store_true", help="list every configuration key")
    args = parser.parse_intermixed_args(list(argv))
    if args.help_keys:
        from pipeline.config.file import describe_keys

        sys.stdout.write(describe_keys() + "\n")
        sys.exit(0)
    overrides = [word for word in args.words if _OVERRIDE.fullmatch(word)]
    others = [word for word in args.words if not _OVERRIDE.fullmatch(word)]
    runs = tuple(others[1:]) if others[:1] == ["report"] else ()
    if runs:
        _check_compared(runs, overrides, args.resume)
    elif len(others) > 1:
        raise ConfigError(
            "E-CONFIG-002",
            f"one stage at a time, got {', '.join(others)}",
            where="command line",
            todo=f"choose one of {', '.join(STAGES)}",
        )
    stage = others[0] if others else "all"
    if stage not in STAGES:
        nearest = difflib.get_close_matches(stage, STAGES, n=1)
        meant = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ConfigError(
            "E-CONFIG-003",
            f"{stage!r} is neither a stage nor section.key=value{meant}",
            where="command line",
            todo=f"stages are {', '.join(STAGES)}",
        )
    return Command(stage, args.config, tuple(overrides), args.resume, args.dry_run, runs)


def _check_compared(runs: Sequence[str], overrides: Sequence[str], resume: str | None) -> None:
    """Refuse configuration words and repeated runs: records are compared as they are."""
    where = f"report {' '.join(runs)}"
    if overrides or resume is not None:
        raise ConfigError(
            "E-CONFIG-004",
            "a comparison takes the names of runs only",
            where=where,
            todo="leave out --resume and section.key=value; --config may name run.root",
        )
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise ConfigError(
            "E-CONFIG-005",
            "a comparison needs two runs or more, each once",
            where=where,
            todo="name another run, or use report --resume RUN for the page of one run",
        )
