"""Why a Ray cluster could not be started or joined: settings checked before, failures by cause.

Ray's own text for a failed start is the same for many causes; its logs say which one it was.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline import environment, storage
from pipeline.environment import Variable, is_number
from pipeline.errors import ClusterError, StorageError

_CONNECT_S = 10.0
# Limit of the system for the path of a socket, without the zero at its end.
_MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
# What Ray puts below its folder; read from ray._private.node of Ray 2.56 to 2.60.
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
_LOGS = ("gcs_server.out", "gcs_server.err", "raylet.out", "raylet.err")
_LOG_BYTES = 20_000
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9._-]*):(\d{1,5})")
_AUTH_MODES = ("disabled", "token", "k8s")
_UNSET = "or unset RAY_ADDRESS to start Ray on this machine"
_SET_TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token"
_SHORT = "set RAY_TMPDIR to a short path that can be written, such as /tmp"

# Ray's native processes end at once when a number is none.
VARIABLES = (
    Variable(
        r"(?i:RAY_\w+_(s|ms|us|seconds|milliseconds|bytes|mb|gb|port|threshold|fraction|percent))",
        "a number", lambda v: is_number(v.removeprefix("-")),
    ),
    Variable(r"RAY_AUTH_MODE", "one of " + ", ".join(_AUTH_MODES), lambda v: v in _AUTH_MODES),
    Variable(r"RAY_(AUTH_TOKEN)", "one word of printable characters", environment.is_token),
    Variable(r"RAY_(TMPDIR)", "an absolute path", lambda v: v.startswith("/")),
)  # fmt: skip


@dataclass(frozen=True)
class Cause:
    """One cause of a failed start, found by a pattern in Ray's text or logs."""

    id: str
    pattern: str
    what: str
    todo: str


CAUSES = (
    Cause("E-CLUSTER-370", r"AF_UNIX path|path too long|File name too long",
           "the path of Ray's folder is too long for its sockets", _SHORT),
    Cause("E-CLUSTER-371", r"No space left on device|Errno 28|disk quota exceeded|Errno 122|"
           r"exceeds? .*/dev/shm|/dev/shm has only",
           "no space is left for Ray's folder or its shared memory",
           "free space (`df -h /tmp /dev/shm`), or set RAY_TMPDIR to a larger disk; in a container "
           "raise --shm-size"),
    Cause("E-CLUSTER-372", r"Address already in use|Errno 98|port \d+ .*(in use|taken)",
           "a port that Ray needs is taken",
           "stop the other Ray on this machine (`ray stop`), or set RAY_ADDRESS to join it"),
    Cause("E-CLUSTER-373", r"Cannot allocate memory|MemoryError|bad_alloc|Errno 12\b|"
           r"cap object store memory|amount of memory on this node|out of memory",
           "this machine has too little free memory for Ray",
           "end other work, raise the memory limit of the container or job, or join a cluster with "
           "RAY_ADDRESS"),
    Cause("E-CLUSTER-374", r"Permission denied|Errno 13\b|Operation not permitted|Errno 1\b",
           "Ray may not write its folder or start its processes",
           "set RAY_TMPDIR to a folder of this user: another one may own /tmp/ray"),
    Cause("E-CLUSTER-375", r"Read-only file system|Errno 30\b",
           "Ray's folder is on a read-only file system", _SHORT),
    Cause("E-CLUSTER-376", r"Too many open files|Errno 24\b",
           "this user may not open as many files as Ray needs",
           "raise the limit with `ulimit -n 65536`"),
    Cause("E-CLUSTER-377", r"start new thread|pthread_create|Resource temporarily unavailable|"
           r"Errno 11\b",
           "this user may not start as many processes and threads as Ray needs",
           "raise the limit with `ulimit -u`, or the pids limit of the container"),
    Cause("E-CLUSTER-378", r"Version mismatch|version.*does not match",
           "the cluster runs another version of Ray or of Python",
           "install the versions of the cluster here, or use its image"),
)  # fmt: skip


def check_settings(address: str | None, *, makes_folder: bool = True) -> None:
    """Refuse settings with which Ray would fail late, in silence, or after minutes.

    Args:
        address: of RAY_ADDRESS; None to start a cluster here.
        makes_folder: whether Ray's folder is made, which some file systems only then refuse.

    Raises:
        ClusterError: naming the variable and its form, or the folder.
    """
    misfit = environment.find_misfit(VARIABLES)
    if misfit is not None:
        raise ClusterError("E-CLUSTER-380", misfit.what, where=misfit.name, todo=misfit.todo)
    if address is None:
        _check_folder(makes=makes_folder)
    elif address != "auto":
        _check_address(address)


def _check_address(address: str) -> None:
    found = _ADDRESS.fullmatch(address)
    if found is not None and 0 < int(found[2]) < 65536:
        return
    form = f"set RAY_ADDRESS to HOST:PORT of the head, such as 10.0.0.1:6379, {_UNSET}"
    if address.startswith(("http://", "https://")):
        form = f"that is the dashboard, which `ray job submit` takes; {form}"
    elif address.startswith("ray://"):
        form = f"a Ray client is not enough; submit a job with `ray job submit`, or {form}"
    raise ClusterError(
        "E-CLUSTER-381", "RAY_ADDRESS is not HOST:PORT", where=f"RAY_ADDRESS={address}", todo=form
    )


def ray_folder() -> Path:
    """Return where Ray puts its sessions on this machine."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def _check_folder(*, makes: bool) -> None:
    folder = ray_folder()
    socket_path = os.path.join(os.path.abspath(folder), _SOCKET.format(pid=os.getpid()))
    if len(os.fsencode(socket_path)) > _MAX_SOCKET_BYTES:
        raise _of_cause("E-CLUSTER-370", str(folder))
    try:
        storage.check_writable(os.path.abspath(folder / "ray"))
    except StorageError as error:
        ids = {
            "E-STORAGE-372": "E-CLUSTER-375",
            "E-STORAGE-373": "E-CLUSTER-371",
            "E-STORAGE-374": "E-CLUSTER-371",
        }
        raise _of_cause(ids.get(error.id, "E-CLUSTER-374"), str(folder)) from error
    if not makes:
        return
    try:
        os.makedirs(folder / "ray", exist_ok=True)
    except OSError as error:
        raise _of_cause("E-CLUSTER-374", str(folder), str(error.strerror)) from error


def _of_cause(id: str, where: str, message: str = "") -> ClusterError:
    cause = next(cause for cause in CAUSES if cause.id == id)
    return ClusterError(
        id, cause.what + (f": {message}" if message else ""), where=where, todo=cause.todo
    )


def check_answers(address: str) -> None:
    """Raise OSError when nothing listens there: Ray itself would try for minutes."""
    found = _ADDRESS.fullmatch(address)
    if found is not None:
        host = found[1].strip("[]")
        socket.create_connection((host, int(found[2])), timeout=_CONNECT_S).close()


def start_error(error: Exception, address: str | None, *, since_s: float) -> ClusterError:
    """Return the error that says why the cluster could not be joined or started.

    Args:
        error: of Ray.
        address: of RAY_ADDRESS; None when a cluster was to be started here.
        since_s: when the start began, in seconds since 1970; older logs do not count.
    """
    where = f"RAY_ADDRESS={address}" if address else "this machine"
    message = " ".join(str(error).split())[:300] or type(error).__name__
    if type(error).__name__ == "AuthenticationError":
        return ClusterError(
            "E-CLUSTER-004", "there is no token for the Ray cluster", where=where, todo=_SET_TOKEN
        )
    for text in (message, *([] if address else _log_ends(since_s))):
        for cause in CAUSES:
            line = re.search(rf"[^\n]*({cause.pattern})[^\n]*", text, re.IGNORECASE)
            if line is not None:
                return _of_cause(cause.id, where, line.group().strip()[:300])
    if isinstance(error, ValueError):
        names = environment.named_in(message, r"RAY_\w+")
        return ClusterError(
            "E-CLUSTER-382",
            f"Ray refuses its settings: {message}",
            where=", ".join(names) or where,
            todo=f"correct or unset {', '.join(names) or 'the RAY_* variables'}",
        )
    if address and "Failed to connect to Ray cluster" in message:
        # Its port answered a moment ago.
        return ClusterError(
            "E-CLUSTER-005",
            "the Ray cluster answers, but does not let this client in: the token is missing or "
            "wrong, or it is no Ray cluster of this version",
            where=where,
            todo=f"{_SET_TOKEN}, {_UNSET}",
        )
    if address:
        return ClusterError(
            "E-CLUSTER-007",
            f"the Ray cluster cannot be reached: {message}",
            where=where,
            todo=f"check the address and that the head runs, {_UNSET}",
        )
    return ClusterError(
        "E-CLUSTER-006",
        f"Ray does not start on this machine: {message}",
        where=where,
        todo="run it again when the machine is less busy; Ray's own logs are in "
        f"{ray_folder()}/ray/session_latest/logs",
    )


def _log_ends(since_s: float) -> list[str]:
    """Return the ends of the logs of Ray's processes of this start."""
    folder, ends = ray_folder() / "ray" / "session_latest" / "logs", []
    for name in _LOGS:
        try:
            file = folder / name
            if file.stat().st_mtime >= since_s - 1:
                ends.append(file.read_bytes()[-_LOG_BYTES:].decode(errors="replace"))
        except OSError:
            continue
    return ends
