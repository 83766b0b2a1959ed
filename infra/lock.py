"""requirements.txt with all that it pulls in, each by version and SHA-256: python infra/lock.py.

pip resolves for this machine's platform and installs nothing. The image is built for Linux on
x86-64 with the Python of infra/Dockerfile, so lock with the same Python on such a machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "infra" / "requirements.lock"


def resolve(requirements: Path) -> dict[str, Any]:
    """Return pip's report of what it would install from its default index alone.

    Raises:
        subprocess.CalledProcessError: the requirements contradict each other, or no network.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["--quiet", "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                *words,
                "--report",
                report,
                "-r",
                requirements,
            ],
            check=True,
            env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
        )
        content: dict[str, Any] = json.loads(report.read_text())
    return content


def locked(report: dict[str, Any]) -> str:
    """Return the lock file: `name==version --hash=sha256:...`, sorted by name.

    Raises:
        ValueError: a package comes from a local file: its hash would mean nothing elsewhere.
    """
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if item["download_info"]["url"].startswith("file:"):
            raise ValueError(f"{name} comes from a local file; unset PIP_FIND_LINKS")
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        canonical = re.sub(r"[-_.]+", "-", name).lower()
        lines.append(f"{canonical}=={version} --hash=sha256:{digest}")
    return "\n".join(["# Made by infra/lock.py from requirements.txt.", *sorted(lines)]) + "\n"


if __name__ == "__main__":
    LOCK.write_text(locked(resolve(ROOT / "requirements.txt")))
