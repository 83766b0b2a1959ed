"""The stage `reproduce`: the runs of a study, one after the other, and the table of all of them.

    STUDY/study.json   what the runs say together
    STUDY/study.md     the same as text
    STUDY/study.html   the same as a page, with links to the runs

STUDY is `<run.root>/study-<name>-<hash of its runs>`. Each run is an ordinary one, in a folder of
its own. The same command resumes the study: complete runs are kept, an interrupted one resumes.
"""

from __future__ import annotations

import hashlib
import shlex
import time
from contextlib import ExitStack

from pipeline import storage
from pipeline.cli.command_line import Command
from pipeline.cli.preview import preview
from pipeline.cluster.auto import settled_here
from pipeline.cluster.connect import connected
from pipeline.config import Config
from pipeline.config.file import config_hash
from pipeline.config.study import Study, Training, load_study
from pipeline.console import Console, counted, duration, program
from pipeline.errors import ConfigError
from pipeline.record.keeper import read_run
from pipeline.record.run import COMPLETE, WITH_ALARMS
from pipeline.record.study import StudyRecord, StudyRun

_ENDED = (COMPLETE, WITH_ALARMS)


def reproduce(command: Command, console: Console) -> None:
    """Do what is left of the study, and show its table.

    Raises:
        PipelineError: as the stages of its runs.
    """
    study = _study(command)
    trainings = study.trainings(command.overrides)
    if command.dry_run:
        _preview(command, study, trainings, console)
        return
    began_s, runs = time.monotonic(), []
    console.stage("study", f"{study.title}: {counted(len(trainings), 'run')}, {_seeds(study)}")
    _estimate(trainings, console)
    with ExitStack() as stack:
        stack.callback(setattr, console, "how_to_resume", "the same command resumes the study")
        stack.enter_context(connected())  # once for all runs
        for number, training in enumerate(trainings, 1):
            what = f"{number} of {len(trainings)}: seed {training.seed}, {training.arm.name}"
            uri = _run(training, study, what, console)
            if study.mine and training.arm == study.arms[0]:
                _mine(uri, training, study, console)
            runs.append(StudyRun(arm=training.arm.name, seed=training.seed, uri=uri))
    _end(command, study, tuple(runs), console)
    console.line(f"this invocation took {duration(time.monotonic() - began_s)}")


def _study(command: Command) -> Study:
    assert command.study is not None
    study = load_study(command.study)
    keys = [*study.keys, *(key for arm in study.arms for key in arm.keys)]
    own = {"run.seed", "data.split_seed", *(key.partition("=")[0] for key in keys)}
    taken = [word for word in command.overrides if word.partition("=")[0] in own]
    if taken:
        raise ConfigError(
            "E-CONFIG-722",
            f"the study sets {taken[0].partition('=')[0]} itself",
            where=f"reproduce {command.study} {taken[0]}",
            todo="leave it out, or copy the study's file and change it there",
        )
    return study


def _estimate(trainings: tuple[Training, ...], console: Console) -> None:
    """Show how long the trainings that are left would take here, from a few steps.

    Raises:
        ConfigError: the images have no labels, so that the runs would have no score to compare.
    """
    from pipeline import feed
    from pipeline.cli.timing import measure
    from pipeline.ingest.plan import dry_run
    from pipeline.model import build

    left = [training for training in trainings if _status(_folder(training)) not in _ENDED]
    plans = {t.arm.name: dry_run(t.config) for t in reversed(left)}
    if not plans:
        return
    first = left[0].config
    _refuse_unlabelled(first, plans[left[0].arm.name].class_names)
    steps = sum(
        feed.epoch_plan(t.config, plans[t.arm.name].manifest).num_steps
        * t.config.train.epochs
        * len(t.config.train.methods)
        for t in left
    )
    crop_px = build.crop_px(first, plans[left[0].arm.name].manifest)
    timing = measure(settled_here(first), crop_px, where=_folder(left[0]))
    console.stage(
        "study",
        f"{counted(len(left), 'run')} to train, {counted(steps, 'step')}: about "
        f"{duration(steps * timing.step_s)} of "
        f"training on this machine ({timing.device}), and the scores on top",
    )


def _refuse_unlabelled(first: Config, class_names: tuple[str, ...] | None) -> None:
    if class_names is None:
        raise ConfigError(
            "E-CONFIG-724",
            "the images have no labels, so the runs of a study have no scores to compare",
            where=f"data.path={first.data.path}",
            todo="name labelled images, or train runs one by one and compare how well they learned:"
            f" {program()} report RUN RUN",
        )


def _seeds(study: Study) -> str:
    return f"seeds {', '.join(map(str, study.seeds))}; the same command resumes it"


def _preview(
    command: Command, study: Study, trainings: tuple[Training, ...], console: Console
) -> None:
    console.stage("study", f"{study.title}: {counted(len(trainings), 'run')}, {_seeds(study)}")
    _estimate(trainings, console)
    for training in trainings:
        uri = _folder(training)
        state = "is complete and will be kept" if _status(uri) in _ENDED else "will be trained"
        console.line(f"  seed {training.seed}, {training.arm.name}: {uri} {state}")
    for arm in study.arms:
        training = next(t for t in trainings if t.arm == arm)
        console.stage("study", f"a run of the arm {arm.name}, {len(study.seeds)} in all:")
        preview(_words(training, study), console)


def _words(training: Training, study: Study, *, resume: str | None = None) -> Command:
    if resume is not None:
        return Command("all", None, (), resume, dry_run=False)
    return Command("all", study.config_file, training.words, None, dry_run=False)


def _folder(training: Training) -> str:
    config = training.config
    name = f"{config.run.name}-{config_hash(config)[:8]}"
    return storage.join(storage.absolute(config.run.root), name)


def _status(uri: str) -> str | None:
    return read_run(uri).status if storage.exists(storage.join(uri, "run.json")) else None


def _run(training: Training, study: Study, what: str, console: Console) -> str:
    """Train and evaluate one run, or the rest of it; return its folder."""
    from pipeline.cli.stages import run_stages

    uri = _folder(training)
    status = _status(uri)
    if status in _ENDED and storage.exists(storage.join(uri, "evaluation.json")):
        console.stage("study", f"{what}: complete, kept: {uri}")
        return uri
    console.stage("study", what)
    run_stages(_words(training, study, resume=None if status is None else uri), console)
    return uri


def _mine(uri: str, training: Training, study: Study, console: Console) -> None:
    from pipeline.cli.stages import run_stages

    if storage.exists(storage.join(uri, "mining.json")):
        return
    run_stages(Command("mine", None, (), uri, dry_run=False), console)


def _end(command: Command, study: Study, runs: tuple[StudyRun, ...], console: Console) -> None:
    """Write and show what the runs say together."""
    from pipeline.evaluate.study import rare_found, study_scores
    from pipeline.record.study_text import markdown, show_study
    from pipeline.report.comparison import write_comparison
    from pipeline.report.study_page import render

    first = [run.uri for run in runs if run.arm == study.arms[0].name]
    scores = study_scores(runs, study.twin)
    words = ["reproduce", str(command.study), *command.overrides]
    record = StudyRecord(
        name=study.name,
        title=study.title,
        command=f"{program()} {shlex.join(words)}",
        runs=runs,
        scored_on=scores.scored_on,
        scores=scores.scores,
        differences=scores.differences,
        gaps=scores.gaps,
        rare=rare_found(runs),
        wall_s=sum(sum(read_run(run.uri).timings_s.values()) for run in runs),
    )
    root = first[0].rpartition("/")[0]
    digest = hashlib.sha256("\n".join(run.uri for run in runs).encode()).hexdigest()[:8]
    folder = storage.join(root, f"study-{study.name}-{digest}")
    record.write(storage.join(folder, "study.json"))
    storage.write_bytes(storage.join(folder, "study.md"), markdown(record).encode())
    page = storage.join(folder, "study.html")
    storage.write_bytes(page, render(record, folder).encode())
    show_study(console, record)
    console.stage("study", f"record: {folder}")
    if len(first) > 1:
        console.stage("study", f"comparison of the first arm: {write_comparison(first, root)}")
    console.stage("study", f"page: {page}")
