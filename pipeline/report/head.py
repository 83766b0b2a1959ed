"""The head that every page of a run shares: title, status, alarms, links to other pages."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from pipeline.console import counted, program
from pipeline.errors import ErrorReport
from pipeline.report.inputs import Inputs
from pipeline.report.names import data_title, listed, title
from pipeline.report.parts import Link


@dataclass(frozen=True)
class Head:
    """The head of a run's page: what it is about, how it ended, what is wrong.

    Args:
        title: the user's folder and the number of images.
        kicker: what kind of page it is.
        status: running, complete, failed, or complete with alarms.
        tone: CSS class of the status.
        facts: methods, epochs, seed, start; the run's name last.
        alarms: (method, sentence, what to change).
        has_pixels: whether images are so small that their pixels are to be seen.
    """

    title: str
    kicker: str
    status: str
    tone: str
    facts: tuple[str, ...]
    name: str
    alarms: tuple[tuple[str, str, str], ...]
    error: ErrorReport | None
    links: tuple[Link, ...]
    has_pixels: bool


def head(inputs: Inputs, kicker: str, links: tuple[Link, ...]) -> Head:
    """Return the head that every page of a run shares."""
    run = inputs.run
    checked = inputs.newest_health()
    alarms = tuple(
        (f"{a.level[0].upper()}{a.level[1:]}, {title(m)}",
         f"{a.text} (random crops of {counted(checked[m].num_images, 'image')}, in training)",
         a.change)
        for m, a in inputs.alarms()
    )  # fmt: skip
    status = inputs.status
    tone = {"complete": "complete", "running": "open"}.get(status, "failed")
    epochs = max((row.epoch + 1 for row in inputs.steps), default=0)
    words = [
        listed([title(m) for m in inputs.methods]),
        counted(epochs, "epoch") if epochs else "",
        f"seed {run.seed}",
        run.started_utc.replace("T", " ").replace("+00:00", " UTC"),
    ]
    return Head(
        title=data_title(inputs.manifest, run.data.name if run.data else None),
        kicker=kicker,
        status=status,
        tone=tone,
        facts=tuple(word for word in words if word),
        name=run.run,
        alarms=alarms,
        error=_with_command(run.error, inputs),
        links=links,
        has_pixels=inputs.manifest is not None and inputs.manifest.image.encoding == "raw",
    )


def _with_command(error: ErrorReport | None, inputs: Inputs) -> ErrorReport | None:
    """Return the error of the run; an interrupted one with the whole command that resumes it."""
    words = {"tune": "tune --resume", "train": "--resume"}
    word = next((words[stage] for stage in words if stage in inputs.run.stages), None)
    # Weights that were given are scored in a folder of their own, which trains nothing.
    if error is None or error.kind != "Interrupted" or word is None:
        return error
    return replace(error, todo=f"resume it: {program()} {word} {shlex.quote(inputs.run_uri)}")
