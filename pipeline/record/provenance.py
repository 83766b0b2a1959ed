"""Provenance of a run: versions, hardware, git state, command line.

Nothing here imports a heavy package: versions are read from installed metadata, and GPUs are listed
only when somebody else has imported torch already.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import sdclr
from pipeline.record.schema import Part
from pipeline.redact import redact

PACKAGES = (
    "sdclr", "torch", "torchvision", "ray", "pyarrow", "numpy", "pillow", "pydantic",
    "safetensors", "scikit-learn", "jinja2",
)  # fmt: skip
_GIT_TIMEOUT_S = 10.0


class Git(Part):
    """The checkout; nulls outside one."""

    commit: str | None
    dirty: bool | None


class Hardware(Part):
    """The driver's machine, with the GPUs that did the work."""

    platform: str
    cpu_count: int | None
    memory_bytes: int | None
    gpus: tuple[str, ...]


def command_line(argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> str:
    """Return the command as one shell line, secrets masked. argv: None = this process's."""
    words = list(sys.argv) if argv is None else list(argv)
    return shlex.join(redact(word, env) for word in words)


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of Python and each package; null where absent."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a checkout of our own need not be installed
            found[name] = sdclr.__version__ if name == "sdclr" else None
    return found


def hardware() -> Hardware:
    """Return platform, logical CPUs, memory in bytes (null if unknown) and visible GPUs."""
    return Hardware(
        platform=platform.platform(),
        cpu_count=os.cpu_count(),
        memory_bytes=machine_memory_bytes(),
        gpus=tuple(_gpu_names()),
    )


def machine_memory_bytes() -> int | None:
    """Return the memory of this machine; None where it is not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None


def _gpu_names() -> list[str]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]


def git_state(root: Path | None = None) -> Git:
    """Commit and dirty flag of the checkout whose top folder is `root`; nulls outside a checkout.

    An installed copy inside somebody else's repository must not borrow that repository's commit,
    so the top folder has to be `root` itself. Untracked files that git does not ignore count as
    dirty: an untracked module changes what runs.

    Args:
        root: None = the folder above this package.
    """
    root = Path(__file__).resolve().parents[2] if root is None else root
    unknown = Git(commit=None, dirty=None)
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top.strip()).resolve() != root.resolve():
        return unknown
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    status = _git(root, "status", "--porcelain")
    if commit is None:
        return unknown
    return Git(commit=commit.strip(), dirty=None if status is None else bool(status.strip()))


def _git(root: Path, *words: str) -> str | None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False, env=env,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
