"""Claim of a training on a run's folder, and the check that every worker sees the folder.

    RUN/training.json   a random token, written by the driver before the workers start

By the rule of `pipeline.storage.claim`: an earlier training ends before its next checkpoint.
A worker that finds none looks into a folder of its own node: its steps would be seen by nobody.
"""

from __future__ import annotations

import torch

from pipeline import storage
from pipeline.dataset.manifest import MANIFEST_NAME
from pipeline.errors import ConfigError, StorageError, TrainingError
from pipeline.record.abandoned import claim_uri
from pipeline.storage import claim
from pipeline.storage.claim import Holder
from sdclr import collective


def begin(run_uri: str) -> str:
    """Claim the run for a training; return the token that its workers are given."""
    return claim.take(claim_uri(run_uri))


def refuse_another(run_uri: str, token: str) -> None:
    """Stop before a checkpoint is written into a run that another training has resumed.

    Raises:
        StorageError: so it is; workers that start again because of it learn it together.
    """
    if claim.holder(claim_uri(run_uri), token) is not Holder.MINE:
        raise StorageError(
            "E-STORAGE-005",
            "the run has been taken over by another training",
            where=run_uri,
            todo="wait for the end of that training",
        )


def check(run_uri: str, token: str, *, data_uri: str, device: torch.device) -> None:
    """Refuse, on all ranks at once, folders that not every worker shares; every rank calls it.

    Raises:
        ConfigError: some worker sees no claim, or an old one in a folder of its own node, or no
            data set.
        TrainingError: another training of the run has begun.
    """
    sees_data = storage.exists(storage.join(data_uri, MANIFEST_NAME))
    holder = claim.holder(claim_uri(run_uri), token)
    mine = torch.tensor([holder.value, int(not sees_data)], device=device)
    found, data = collective.stack_over_ranks(mine).T
    if bool((found == Holder.ANOTHER.value).all()):
        raise TrainingError(
            "E-TRAIN-003",
            "another training of this run has begun, and takes the place of this one",
            where=run_uri,
            todo="wait for its end",
        )
    for what, key, uri, unseen in (
        ("run's folder", "run.root", run_uri, found != Holder.MINE.value),
        ("data set", "data.root", data_uri, data != 0),
    ):
        blind = unseen.nonzero().flatten().tolist()
        if blind:
            raise ConfigError(
                "E-CONFIG-033",
                f"worker {blind[0]} of {len(found)} does not see the {what}",
                where=uri,
                todo=f"set {key} to s3:// or to a folder that every node mounts",
            )
