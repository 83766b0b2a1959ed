"""The command line: a stage, its own words, and keys of the configuration."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from pipeline.cli.words import (
    DTYPES,
    OWN_WORDS,
    SECTIONS_OF,
    SETS,
    STAGES,
    TRACKERS,
    DType,
    SetName,
    TrackerName,
)
from pipeline.console import program
from pipeline.curate.words import SIMILARITY, check_words
from pipeline.errors import ConfigError

_TAKES_NAMES = ("evaluate", "report", "log", "reproduce")
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
        runs: of `report`, the runs to compare, of `evaluate`, to average; empty = one run; of
            `reproduce`, the study. Of
            `log`, the one run.
        checkpoint: of `evaluate` and `embed`: weights to use instead of the run's models.
        data, set_name: of `embed`, `curate` and `mine`: another data set, and which of its sets.
        extend: of `train`: a finished run whose weights a new run starts from.
        tracker, follow: of `log`: where to, and whether until the run has ended.
        root, remove: of `gc`: where to look, and the token of the listing to remove.
        dtype: of `embed`: of the stored numbers.
        keep, similarity: of `curate`: images to select, cosine of near-duplicates.
        labels, rare: of `mine`: a CSV of labels, and which of them are rare.
    """

    stage: str
    config_file: str | None
    overrides: tuple[str, ...]
    resume: str | None
    dry_run: bool
    runs: tuple[str, ...] = ()
    checkpoint: str | None = None
    data: str | None = None
    set_name: SetName | None = None
    extend: str | None = None
    tracker: TrackerName | None = None
    follow: bool = False
    root: str | None = None
    remove: str | None = None
    dtype: DType | None = None
    keep: int | None = None
    similarity: float | None = None
    labels: str | None = None
    rare: tuple[str, ...] = ()

    @property
    def study(self) -> str | None:
        """Return the name or file of the study to reproduce."""
        return self.runs[0] if self.stage == "reproduce" else None

    @property
    def cosine(self) -> float:
        """Return the cosine of near-duplicates: the given one, or the usual one."""
        return SIMILARITY if self.similarity is None else self.similarity


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            "E-CONFIG-001", message, where="command line", todo=f"see {program()} --help"
        )


def parse(argv: Sequence[str]) -> Command:
    """Read the command line; --help and --help-keys print and exit.

    Raises:
        ConfigError: unknown words, with the nearest known one.
    """
    args = _parser().parse_intermixed_args(list(argv))
    overrides = tuple(word for word in args.words if _OVERRIDE.fullmatch(word))
    others = [word for word in args.words if not _OVERRIDE.fullmatch(word)]
    if args.help_keys:
        _show_keys(args.help_keys, others)
    stage = others[0] if others else "all"
    if args.help:
        _show_help(stage if others else None)
    if stage not in STAGES:
        nearest = difflib.get_close_matches(stage, STAGES, n=1)
        meant = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ConfigError(
            "E-CONFIG-003",
            f"{stage!r} is neither a stage nor section.key=value{meant}",
            where="command line",
            todo=f"stages are {', '.join(STAGES)}",
        )
    runs = tuple(others[1:])
    if runs and stage not in _TAKES_NAMES:
        raise ConfigError(
            "E-CONFIG-002",
            f"one stage at a time, got {', '.join(others)}",
            where="command line",
            todo=f"choose one of {', '.join(STAGES)}",
        )
    command = Command(
        stage, args.config, overrides, args.resume, args.dry_run, runs,
        args.checkpoint, args.data, args.set, args.extend, args.to, args.follow,
        args.root, args.remove, args.dtype, args.keep, args.similarity,
        args.labels, tuple(args.rare.split(",")) if args.rare is not None else (),
    )  # fmt: skip
    _check(command)
    return command


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program(),
        usage="%(prog)s [STAGE] [--config FILE] [section.key=value ...] [--resume RUN] [--dry-run]",
        description="Self-damaging contrastive learning on long-tailed images, on Ray.\n"
        "Without arguments: the demo, handwritten digits on this machine, a few minutes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("words", nargs="*", metavar="STAGE | section.key=value")
    parser.add_argument("--config", metavar="FILE", help="YAML file, see tune_configs/")
    parser.add_argument(
        "--resume", metavar="RUN", help="resume this run: the same configuration, exactly"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, do nothing")
    for flag, (stages, value, text) in OWN_WORDS.items():
        text = f"{', '.join(stages)}: {text}"
        if not value:
            parser.add_argument(flag, action="store_true", help=text)
            continue
        choices = {"--set": SETS, "--to": TRACKERS, "--dtype": DTYPES}.get(flag)
        kind = {"--keep": int, "--similarity": float}.get(flag, str)
        parser.add_argument(flag, metavar=value, choices=choices, type=kind, help=text)
    parser.add_argument("--help", "-h", action="store_true", help="this text; after a STAGE: its "
                        "own words and keys")  # fmt: skip
    parser.add_argument("--help-keys", nargs="?", const="all", metavar="SECTION",
                        help="list the configuration keys, of all sections or of one")  # fmt: skip
    return parser


def _show_help(stage: str | None) -> NoReturn:
    parser, name = _parser(), program()
    if stage in SECTIONS_OF:
        others = {
            "evaluate": "evaluate RUN RUN [RUN ...]",
            "report": "report RUN RUN [RUN ...]",
            "log": "log RUN --to TRACKER",
        }
        words = f"       {name} {others[stage]}\n" if stage in others else ""
        own = {flag: (v, text) for flag, (of, v, text) in OWN_WORDS.items() if stage in of}
        flags = "".join(f" [{f'{flag} {value}'.strip()}]" for flag, (value, _) in own.items())
        usual = "[--config FILE] [section.key=value ...] [--resume RUN] [--dry-run]"
        if stage == "reproduce":
            usual = "STUDY [section.key=value ...] [--dry-run]"
        sys.stdout.write(
            f"usage: {name} {stage} {usual}{flags}\n{words}\n{stage}: {STAGES[stage]}\n"
        )
        for flag, (value, text) in own.items():
            sys.stdout.write(f"  {flag} {value}  {text}\n")
        if SECTIONS_OF[stage]:
            from pipeline.config.file import describe_keys

            sys.stdout.write(f"\nkeys:\n\n{describe_keys(*SECTIONS_OF[stage])}")
        sys.exit(0)
    stages = "\n".join(f"  {word:10s}{text}" for word, text in STAGES.items())
    parser.epilog = (
        f"stages:\n{stages}\n\nexamples:\n"
        f"  {name} train.epochs=10 run.seed=1\n"
        f"  {name} --config tune_configs/cifar10_lt.yaml preset=official\n"
        f"  {name} --config tune_configs/photos.yaml data.path=FOLDER\n"
        f"  {name} tune --config tune_configs/sweep_demo.yaml\n"
        f"  {name} report RUN RUN\n"
        f"  {name} reproduce demo\n\n"
        "RAY_ADDRESS names a cluster to join; without it Ray starts on this machine."
    )
    sys.stdout.write(parser.format_help())
    sys.exit(0)


def _show_keys(section: str, others: Sequence[str]) -> NoReturn:
    from pipeline.config.file import describe_keys
    from pipeline.config.help import SCHEMA

    # `--help-keys` before a stage takes it for its section; both orders are fine.
    if section in STAGES and section not in SCHEMA:
        chosen = SECTIONS_OF.get(section, tuple(SCHEMA))
    elif section == "all":
        chosen = SECTIONS_OF.get(others[0] if others else "", tuple(SCHEMA))
    elif section in SCHEMA:
        chosen = (section,)
    else:
        near = difflib.get_close_matches(section, SCHEMA, n=1)
        raise ConfigError(
            "E-CONFIG-221",
            f"there is no section {section!r}{f'; did you mean {near[0]}?' if near else ''}",
            where="--help-keys",
            todo=f"choose one of {', '.join(SCHEMA)}",
        )
    sys.stdout.write(describe_keys(*chosen) + "\n")
    sys.exit(0)


def _check(command: Command) -> None:
    """Refuse words that do not go together."""
    given = {"--checkpoint": command.checkpoint, "--data": command.data,
             "--set": command.set_name, "--extend": command.extend,
             "--to": command.tracker, "--follow": command.follow or None,
             "--root": command.root, "--remove": command.remove,
             "--dtype": command.dtype, "--keep": command.keep,
             "--similarity": command.similarity, "--labels": command.labels,
             "--rare": command.rare or None}  # fmt: skip
    for flag, (stages, _, _) in OWN_WORDS.items():
        if given[flag] is not None and command.stage not in stages:
            known = " or ".join(stages)
            raise ConfigError(
                "E-CONFIG-222",
                f"{flag} is a word of the stage {known}",
                where=f"{command.stage} {flag}",
                todo=f"leave it out, or use the stage {known}",
            )
    if command.extend is not None and command.resume is not None:
        raise ConfigError(
            "E-CONFIG-223",
            "--resume continues a run, --extend starts a new one from it",
            where="train --resume --extend",
            todo="use one of them",
        )
    if command.rare and (command.labels is None or not all(command.rare)):
        raise ConfigError(
            "E-CONFIG-790",
            "rare labels are names of --labels, with a comma between them",
            where="mine --rare",
            todo="use --labels CSV --rare LABEL,LABEL",
        )
    if command.stage == "curate":
        check_words(command.keep, command.cosine)
    if command.stage == "log":
        _check_log(command)
    elif command.stage == "gc":
        _check_gc(command)
    elif command.stage == "reproduce":
        _check_study(command)
    elif command.runs:
        _check_runs(command)


def _check_log(command: Command) -> None:
    """Refuse anything but one run and one tracker."""
    if len(command.runs) != 1 or command.tracker is None or command.resume or command.overrides:
        raise ConfigError(
            "E-CONFIG-601",
            "log takes one run and one tracker",
            where="command line",
            todo=f"{program()} log RUN --to {'|'.join(TRACKERS)}; --config may name run.root",
        )


def _check_gc(command: Command) -> None:
    """Refuse anything but a root."""
    if command.root is None or command.resume or command.overrides or command.config_file:
        raise ConfigError(
            "E-CONFIG-603",
            "gc takes a root, and the token of its listing",
            where="command line",
            todo=f"{program()} gc --root URI; it prints the command that removes",
        )


def _check_study(command: Command) -> None:
    """Refuse anything but one study and keys of its runs."""
    if len(command.runs) != 1 or command.resume or command.config_file:
        raise ConfigError(
            "E-CONFIG-723",
            "reproduce takes the name of one study",
            where="command line",
            todo=f"{program()} reproduce STUDY; the same command resumes it",
        )


def _check_runs(command: Command) -> None:
    """Refuse configuration words beside compared runs, single runs and repeated ones."""
    where = f"{command.stage} {' '.join(command.runs)}"
    other_words = command.resume is not None or command.checkpoint is not None
    if other_words or (command.overrides and command.stage == "report"):
        raise ConfigError(
            "E-CONFIG-004",
            "a comparison takes the names of runs only",
            where=where,
            todo="leave out --resume and section.key=value; --config may name run.root",
        )
    if len(command.runs) < 2 or len(set(command.runs)) < len(command.runs):
        raise ConfigError(
            "E-CONFIG-005",
            "a comparison needs two runs or more, each once",
            where=where,
            todo=f"name another run, or use {command.stage} --resume RUN for one run",
        )
