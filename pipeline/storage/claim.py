"""A claim on a place: the newest continues, an earlier one finds another token and ends.

Object stores have no lock that all of them know. A claim is a small file with a random token:
whoever starts writes its own, and looks before it publishes whether it is still there. So a process
that was killed blocks nobody.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from enum import Enum
from pathlib import Path

from pipeline import storage
from pipeline.errors import StorageError


class Holder(Enum):
    """Whose claim stands in a place."""

    MINE = 0
    ANOTHER = 1
    NOBODY = 2


def take(uri: str) -> str:
    """Write a new claim to the file `uri`, in place of any other; return its token."""
    token = uuid.uuid4().hex
    owner = {"token": token, "host": socket.gethostname(), "pid": os.getpid()}
    storage.write_bytes(uri, json.dumps(owner).encode() + b"\n")
    return token


def holder(uri: str, token: str) -> Holder:
    """Return whose claim stands; a file that is no claim is another's."""
    try:
        content = json.loads(storage.read_bytes(uri))
        return Holder.MINE if content["token"] == token else Holder.ANOTHER
    except StorageError as error:
        if storage.is_missing(error):
            return Holder.NOBODY
        raise
    except (ValueError, TypeError, KeyError, RecursionError):
        return Holder.ANOTHER


def owner_lives(uri: str) -> bool | None:
    """Return whether the process that wrote the claim lives; None where this host cannot know."""
    try:
        owner = json.loads(storage.read_bytes(uri))
        host, pid = str(owner["host"]), int(owner["pid"])
    except StorageError as error:
        if storage.is_missing(error):
            return None
        raise
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return Path(f"/proc/{pid}").exists() if host == socket.gethostname() else None


def release(uri: str, token: str) -> None:
    """Remove the claim, if it still stands."""
    if holder(uri, token) is Holder.MINE:
        storage.delete_tree(uri)
