"""The report's section of facts: command, versions, hardware, times."""

from __future__ import annotations

from pipeline.console import duration
from pipeline.report.inputs import Inputs
from pipeline.report.parts import Pairs

# Only these resume the training itself; a later `report` or `mine` does not.
_RESUMING = ("all", "train", "tune")
_STAGES = ("ingest", "train", "evaluate", "mine", "export", "report", "tune", "compare", "all")


def facts_section(inputs: Inputs) -> tuple[tuple[str, Pairs], ...]:
    """Return all else that the record knows, as titled lists of (name, value)."""
    run = inputs.run
    dirty = ", with uncommitted changes" if run.git.dirty else ""
    memory = run.hardware.memory_bytes
    data = run.data
    facts: tuple[tuple[str, Pairs], ...] = (
        ("Run", (
            ("Name", run.run),
            ("Folder", inputs.run_uri),
            ("Command", run.command),
            *(("Resumed", f"{n.utc}: {n.command}") for n in run.resumes if resumes(n.command)),
            ("Seed", str(run.seed)),
            ("Config hash", run.config_hash),
            ("Git commit", (run.git.commit or "none recorded") + dirty),
        )),
        ("Data", (
            ("Folder", data.uri if data else ""),
            ("Name", data.name if data else ""),
            ("Manifest hash", data.manifest_hash if data else ""),
        )),
        ("Time", (
            *(tuple((n, duration(s)) for n, s in run.timings_s.items())
              or (("Stages", "none has ended yet"),)),
            *_goodput(inputs),
        )),
        ("Hardware", (
            ("Platform", run.hardware.platform),
            ("CPUs", str(run.hardware.cpu_count or "")),
            ("Memory", f"{memory / 2**30:.1f} GiB" if memory else ""),
            ("GPUs", ", ".join(run.hardware.gpus) or "none"),
        )),
        ("Versions", tuple((name, v) for name, v in run.versions.items() if v)),
    )  # fmt: skip
    known = ((name, tuple(pair for pair in pairs if pair[1])) for name, pairs in facts)
    return tuple((name, pairs) for name, pairs in known if pairs)


def _goodput(inputs: Inputs) -> Pairs:
    found = inputs.goodput
    if found is None or not found.lost_s:
        return ()
    parts = []
    for cause, seconds in found.lost_s.items():
        times = found.restarts.get(cause)
        parts.append(f"{cause} {duration(seconds)}" + (f" in {times} times" if times else ""))
    lost = ", ".join(parts)
    return (("Goodput of training", f"{100 * found.frac:.1f} %; lost: {lost}"),)


def resumes(command: str) -> bool:
    """Return whether a later command resumed the training, and did not only look at the run."""
    words = command.split()
    stage = next((word for word in words[1:] if word in _STAGES), "all")
    return stage in _RESUMING
