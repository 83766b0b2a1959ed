"""What the project promises, which tests hold it, and how they last went: docs/reliability.md.

A test says which promises it holds with `@pytest.mark.promise("R1")`; one that shows what happens
without the mechanism says `control=True`. `make reliability` runs the fast ones, `make faults` and
`make soak` the long ones; each leaves a JUnit file in build/promises/, from which

    python -m tests.promises

writes the table.
"""

from __future__ import annotations

import ast
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "reliability.md", ROOT / "build" / "promises"
_START, _END = "<!-- table: written by make reliability -->", "<!-- end of the table -->"
_WORDS = ("failed", "not run", "skipped", "passed")

PROMISES = {
    "R1": "same configuration, seed and build: identical losses for 50 steps on a CPU",
    "R2": "stopped at any step and resumed: losses, weights, momentum, both BatchNorm sets and "
    "masks equal the unbroken run's bit for bit on one or two CPU workers",
    "R3": "the next batches and views after a resume equal the unbroken run's",
    "R4": "two workers with B images each equal one with 2B, in loss and gradients",
    "R5": "masks equal on all ranks and after a resume; exact sparsity; ties defined",
    "R6": "data order is a function of seed, epoch and step alone",
    "R7": "a changed key on --resume is refused by name; init_from takes weights only",
    "R8": "checkpoints of every released format load",
    "R9": "killed at any write: the last committed checkpoint loads, never a partial one",
    "R10": "a failing writer leaves nothing visible and what was there untouched",
    "R11": "a flipped byte of a committed file is refused by name; the run falls back and says so",
    "R12": "a missing, extra or short shard is refused before the first step",
    "R13": "passing faults of S3 are retried until a deadline, refusals never",
    "R14": "full disk, read-only storage: a typed error, no hang",
    "R15": "every wait has a deadline; closing never hangs and names what was not written",
    "R16": "a failed upload leaves no parts behind",
    "R17": "worker or node killed: the run completes and equals the clean one; faults are counted",
    "R18": "budgets are finite and separate for bugs, preemptions and controller failures",
    "R19": "SIGTERM: a checkpoint within the grace time, exit code 143",
    "R20": "a killed sweep resumes without repeating finished trials",
    "R21": "all ranks report equally often",
    "R22": "NaN or Inf on any rank stops before the update and leaves a capture that replays it",
    "R23": "the loss is finite for temperatures from 0.005 to 10",
    "R24": "training, validation and test images are disjoint",
    "R25": "batches of one, a last partial batch, empty and single-class sets are defined",
    "R26": "every kind of unfit image has a defined outcome, counted by reason",
    "R27": "ingest twice: identical shards; interrupted: it starts again and mixes nothing",
    "R28": "data that changed after ingest stops the run with its name",
    "R29": "every image, file and class of a source is taken, or counted by reason",
    "R30": "a data set is reused only for what it was made of, and may be moved",
    "R31": "removal touches exact keys, whatever characters names hold",
    "R32": "a training that shrinks and grows with the cluster equals one of fixed size up to "
    "rounding; no image is left out or comes twice",
    "R35": "a protocol that has ended survives an interruption of its stage",
    "R36": "a run that failed to learn says so before its models are used, and last",
    "R37": "images of a streamed set take no more than feed.max_memory_bytes and two batches",
    "S1": "a hostile checkpoint is refused and runs nothing",
    "S2": "hostile shards and data files are refused and run nothing",
    "S3": "pixel bombs and names that lead outside are refused in bounded time and memory",
    "S4": "YAML tags, anchors, duplicate keys and floods are refused",
    "S5": "secrets appear in no log, record or report",
    "S6": "cluster manifests: tokens on, no public dashboard, non-root, pinned",
    "S7": "no call in the code that runs what a file says",
    "S8": "a report with hostile names is inert",
    "S9": "exact pins; Ray not older than 2.56",
    "S10": "no name in a manifest reads or writes outside its root",
    "S11": "fuzzed records, manifests, checkpoints and configurations give a typed error",
    "O1": "metrics: one JSON line per interval, rising steps, schema tested",
    "O2": "every failure says what, where, what to do, and has an exit code",
    "O6": "no input of a user ends in 'this is a bug'",
    "O3": "progress with speed and time left, plain lines off a terminal",
}


@dataclass(frozen=True)
class Holder:
    """A test that holds promises, or shows that holding them is not trivial."""

    file: str
    name: str
    promises: tuple[str, ...]
    is_control: bool


def holders() -> Iterator[Holder]:
    """Every marked test, read from the sources."""
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                    ids = tuple(ast.literal_eval(arg) for arg in mark.args)
                    control = any(k.arg == "control" for k in mark.keywords)
                    yield Holder(path.stem, node.name, ids, control)


@dataclass(frozen=True)
class Result:
    """How the cases of a test went, and on which day."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    day: str = ""

    @property
    def word(self) -> str:
        """What counts for a promise: a test that was skipped holds nothing."""
        if self.failed:
            return "failed"
        return "passed" if self.passed else "skipped" if self.skipped else "not run"


def results(folder: Path = RESULTS) -> dict[tuple[str, str], Result]:
    """(file, test) -> how it went; the newest run of a test counts."""
    found: dict[tuple[str, str], Result] = {}
    files = sorted(folder.glob("*.xml"), key=lambda path: path.stat().st_mtime)
    for suite in (s for file in files for s in ElementTree.parse(file).iter("testsuite")):
        counts: dict[tuple[str, str], dict[str, int]] = {}
        for case in suite.iter("testcase"):
            if "name" not in case.attrib:  # of a run that was interrupted
                continue
            file = case.attrib["classname"].rpartition(".")[2]
            mine = counts.setdefault((file, case.attrib["name"].partition("[")[0]), {})
            tags = {child.tag for child in case}
            outcome = "failed" if tags & {"failure", "error"} else "passed"
            outcome = "skipped" if "skipped" in tags else outcome
            mine[outcome] = mine.get(outcome, 0) + 1
        day = suite.attrib["timestamp"][:10]
        found |= {key: Result(day=day, **mine) for key, mine in counts.items()}
    return found


def told(outcomes: list[Result]) -> str:
    """One cell: what failed or is missing first."""
    cases = {word: sum(1 for r in outcomes if r.word == word) for word in _WORDS}
    words = [f"**{n} {word}**" for word, n in cases.items() if n and word != "passed"]
    days = [r.day for r in outcomes if r.word == "passed"]
    if days:
        words.append(f"{'all ' if not words else ''}{len(days)} passed, {min(days)}")
    return ", ".join(words)


def table() -> str:
    """The table in Markdown, what did not pass, and below it the tests of each promise."""
    found, marked = results(), list(holders())
    rows = ["| | promise | tests | controls | last result |", "|---|---|---|---|---|"]
    lists, wanting = [], []
    for promise, meaning in PROMISES.items():
        mine = sorted((h for h in marked if promise in h.promises), key=lambda h: h.is_control)
        outcomes = [found.get((h.file, h.name), Result()) for h in mine]
        controls = sum(h.is_control for h in mine)
        counts = f"{len(mine) - controls} | {controls or ''}"
        rows.append(f"| {promise} | {meaning} | {counts} | {told(outcomes)} |")
        lists += ["", *textwrap.wrap(f"**{promise}** {meaning}", 100), ""]
        for holder, outcome in zip(mine, outcomes, strict=True):
            name = f"`{holder.file}::{holder.name}`"
            lists.append(f"- {'*control:* ' if holder.is_control else ''}{name}")
            if outcome.word != "passed" and f"- {name}: {outcome.word}" not in wanting:
                wanting.append(f"- {name}: {outcome.word}")
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    cases = [r for h in {(h.file, h.name) for h in marked} if (r := found.get(h)) is not None]
    total = sum(r.passed for r in cases), sum(r.failed for r in cases)
    return "\n".join(
        [
            *rows,
            "",
            f"{len({(h.file, h.name) for h in marked})} tests; in their last runs {total[0]} cases "
            f"passed and {total[1]} failed. Written at commit {done.stdout.strip()}.",
            "",
            "### Not passed in the last run",
            "",
            *(wanting or ["Nothing."]),
            "",
            "### The tests of each promise",
            *lists,
        ]
    )


def main() -> None:
    """Replace the table of the page."""
    before, _, rest = PAGE.read_text().partition(_START)
    after = rest.partition(_END)[2]
    PAGE.write_text(f"{before}{_START}\n\n{table()}\n\n{_END}{after}")


if __name__ == "__main__":
    main()
