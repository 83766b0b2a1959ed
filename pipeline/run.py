"""The one entry: python pipeline/run.py [STAGE] [--config FILE] [section.key=value ...].

Stages read and write records on storage and know nothing of each other, so each can be run alone.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import NoReturn

# `python pipeline/run.py` puts pipeline/ on the path, not its parent; in any folder, also in a job.
sys.path[:] = [str(Path(__file__).resolve().parent.parent), *sys.path]

from pipeline.cli.command_line import Command, parse
from pipeline.cli.interruption import Terminated, how_ended, leave, signals_raised
from pipeline.console import Console
from pipeline.errors import ConfigError, PipelineError

EXIT_BUG = 1


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    console = Console()
    try:
        with signals_raised():
            return _run(parse(sys.argv[1:] if argv is None else argv), console)
    except PipelineError as error:
        console.error(error)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("pipeline", "sdclr"):
            raise
        missing = ConfigError(
            "E-CONFIG-225",
            f"the package {error.name} is not installed",
            where=sys.prefix,
            todo="python -m pip install 'sdclr[ray]', or -r requirements.txt in a checkout",
        )
        console.error(missing)
        return missing.exit_code
    except (KeyboardInterrupt, Terminated) as error:
        what, code = how_ended(error)
        console.line(f"{what}; {console.how_to_resume}")
        return code
    except Exception:
        traceback.print_exc()
        todo = "please report it with the text above and the run's run.json"
        console.error(
            PipelineError("E-BUG-002", "this is a bug", where="see the traceback", todo=todo)
        )
        return EXIT_BUG


def _run(command: Command, console: Console) -> int:
    if command.study is not None:
        from pipeline.cli.study import reproduce as work
    elif command.dry_run:
        from pipeline.cli.preview import preview as work
    else:
        from pipeline.cli.stages import run_stages as work
    work(command, console)
    return 0


def program() -> NoReturn:
    """Run the command line of this process, and end it."""
    leave(main())


if __name__ == "__main__":
    program()
