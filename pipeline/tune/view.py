"""A sweep on the console: a line of progress, and a plain table of trials now and then."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Sequence

from pipeline import storage
from pipeline.config import Config
from pipeline.console import Console, counted, duration, program
from pipeline.record.scores import ABSENT
from pipeline.record.sweep import SweepResult
from pipeline.tune.objective import objectives
from pipeline.tune.result import best_of
from pipeline.tune.trials import FINISHED, TrialRecord, Trials

_LINE_EVERY_S, _SAME_LINE_EVERY_S, _TABLE_EVERY_S = 5.0, 30.0, 60.0
_NUM_BEST = 5


class View:
    """Console view of one part of a sweep.

    Args:
        console: to write on.
        trials: the records, which another thread changes.
        config: of the sweep.
        method: whose study is running; empty = the confirmations.
        concurrent: trials at the same time.
        planned: how many there will be in all.
    """

    def __init__(
        self,
        console: Console,
        trials: Trials,
        config: Config,
        method: str,
        *,
        concurrent: int,
        planned: int,
    ) -> None:
        self._console, self._trials, self._config = console, trials, config
        self._method, self._concurrent, self._planned = method, concurrent, planned
        self._line_s = self._table_s = self._changed_s = time.monotonic()
        self._line = ""

    def _records(self) -> list[TrialRecord]:
        if self._method:
            return self._trials.all(method=self._method)
        return self._trials.all("confirm")

    def refresh(self) -> None:
        """Show the line or the table when it is time."""
        now_s = time.monotonic()
        if now_s - self._line_s < _LINE_EVERY_S:
            return
        self._line_s = now_s
        line = self.line()
        if line != self._line or now_s - self._changed_s >= _SAME_LINE_EVERY_S:
            self._line, self._changed_s = line, now_s
            self._console.stage("tune", line)
        if now_s - self._table_s >= _TABLE_EVERY_S:
            self._table_s = now_s
            self._console.table(*self.table())

    def end(self) -> None:
        """Show how the part ended."""
        self._console.stage("tune", self.line())
        self._console.table(*self.table())

    def line(self) -> str:
        """Report how many are done, running, stopped and failed, the best, and the time left."""
        records = self._records()
        done = [r for r in records if r.status in FINISHED]
        running = len(records) - len(done)
        counts = {s: sum(r.status == s for r in done) for s in ("pruned", "failed")}
        notes = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
        planned = max(self._planned, len(records))
        parts = [
            f"{self._method or 'fresh seeds'}: {len(done)}/{counted(planned, 'trial')} done"
            + (f" ({notes})" if notes else ""),
            f"{running} running",
        ]
        best = best_of(self._config, records)
        if best is not None and self._method:
            name = next(iter(objectives(self._config)))
            parts.append(f"best {name} {best.last(name):.4f} ({best.name})")
        left_s = self._left_s(done, planned)
        if left_s is not None:
            parts.append(f"about {duration(left_s)} left")
        return ", ".join(parts)

    def _left_s(self, done: Sequence[TrialRecord], planned: int) -> float | None:
        if not done or len(done) >= planned:
            return None
        records, epochs = self._records(), self._config.train.epochs
        epoch_s = sum(r.seconds for r in records) / max(1, sum(r.epochs for r in records))
        running = sum(max(0, epochs - r.epochs) for r in records if r.status not in FINISHED)
        to_come = (planned - len(records)) * sum(r.epochs for r in done) / len(done)
        return epoch_s * (running + to_come) / self._concurrent

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the running trials and the best of those that are done."""
        names = objectives(self._config)
        ((name, mode), *_) = names.items()
        sign = 1.0 if mode == "max" else -1.0
        records = self._records()
        done = [r for r in records if r.status in FINISHED]
        done.sort(key=lambda r: -sign * (r.last(name) or 0.0))
        shown = [r for r in records if r.status == "running"]
        shown += done[:_NUM_BEST] if self._method else done
        keys = list(dict.fromkeys(key for r in shown for key in r.params))
        short = {key: key.partition(".")[2] for key in keys}
        times = Counter(short.values())
        titles = [name if times[name] == 1 else key for key, name in short.items()]
        headers = ["trial", "state", "epoch", *names, *titles]
        rows = [
            [
                f"{r.label} seed {r.seed}" if r.label else r.name,
                r.status,
                f"{r.epochs}/{self._config.train.epochs}",
                *(_shown(r.last(n)) for n in names),
                *(_shown(r.params.get(key)) for key in keys),
            ]
            for r in shown
        ]
        return headers, rows


def result_table(result: SweepResult) -> tuple[list[str], list[list[str]]]:
    """Summarise the settings trained with fresh seeds: mean and standard deviation."""
    names = list(result.objectives)
    rows = []
    for setting in result.confirmed:
        cells = []
        for name in names:
            found = setting.values[name]
            spread = "" if found.std is None else f" ± {found.std:.4f}"
            cells.append(ABSENT if found.mean is None else f"{found.mean:.4f}{spread}")
        num = str(setting.values[names[0]].n)
        params = ", ".join(f"{k.partition('.')[2]} {_shown(v)}" for k, v in setting.params.items())
        rows.append([setting.label, *cells, num, params])
    return ["setting", *names, "seeds", "parameters"], rows


def show_result(console: Console, run_uri: str, result: SweepResult) -> None:
    """Show the end of a sweep: fresh seeds, where the best setting is, what to type next.

    Args:
        console: to write on.
        run_uri: of the sweep.
        result: of the sweep.
    """
    console.line()
    console.table(*result_table(result))
    console.line("mean ± standard deviation over seeds that the search did not see")
    for text in _doubts(result):
        console.line(text)
    if "fewshot" in result.objectives:
        num = result.num_scored
        console.line(
            f"judged on {counted(num, 'val image')}: one image is {100 / num:.1f} points of 100"
        )
    console.line()
    best = storage.join(run_uri, "best.yaml")
    console.line(f"best settings ({result.best}): {best}")
    console.line("next:")
    console.line(f"  train it       {program()} --config {shlex.quote(best)}")
    console.line("  more trials    the same command with a larger tune.trials=N")
    console.line(f"  look closer    optuna-dashboard {storage.join(run_uri, 'study.journal')}")


def _doubts(result: SweepResult) -> list[str]:
    """Return that settings other than the best trial's did better with as many fresh seeds."""
    first, *others = result.confirmed
    mine = first.values[result.first]
    ahead = [
        entry.label
        for entry in others
        if (other := entry.values[result.first]).mean is not None
        and mine.mean is not None
        and other.n == mine.n
        and result.sign * (other.mean - mine.mean) > 0
    ]
    if not ahead:
        return []
    return [
        f"{' and '.join(ahead)} did better than {first.label}: the search's best may be chance; "
        "raise tune.retrain_seeds before you change a setting"
    ]


def _shown(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"
