"""Weights from files, ours or a stranger's, into a backbone: tensors only, no code is ever run.

`.safetensors`, or `.pt`, `.pth` and `.bin` read by torch with weights_only=True. Names are those
that the file has, see `pipeline.model.foreign_names`; a classifier is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import re
import warnings

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from pipeline import storage
from pipeline.config.public_weights import is_public
from pipeline.errors import CheckpointError
from pipeline.model.foreign_names import best_fit, common_prefix
from pipeline.model.public import public_hash, read_public

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_MAX_DEPTH = 4
# Fewer known names than this share mean another naming rather than another architecture.
_SHARE_OF_NAMES = 0.5


def is_weights_file(uri: str) -> bool:
    """Return whether this module reads files of this name; public weights count as one."""
    return is_public(uri) or uri.lower().endswith(SUFFIXES)


def file_hash(uri: str) -> str:
    """Return the SHA-256 of a file of weights, or of the tensors of public ones."""
    if is_public(uri):
        return public_hash(uri)
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest()


def check_given(uri: str) -> None:
    """Refuse what is neither a file of weights nor the folder of a checkpoint; nothing is read.

    Raises:
        CheckpointError: it is not there, or is something else.
    """
    if is_public(uri):
        return
    if not storage.exists(uri if is_weights_file(uri) else storage.join(uri, "commit.json")):
        raise CheckpointError(
            "E-CHECKPOINT-009",
            "there is no checkpoint here",
            where=uri,
            todo="give a folder that holds commit.json (RUN/models/METHOD/checkpoints/step-*), or "
            f"a file of weights ({', '.join(SUFFIXES)})",
        )


def read_weights(uri: str, *, image_px: int | None = None) -> dict[str, Tensor]:
    """Read the tensors of a file, or of public weights, under the names it gives them.

    Args:
        uri: a file, or the name of public weights.
        image_px: side of the images, for public weights of transformers.

    Raises:
        CheckpointError: not such a file, or one that holds more than tensors.
        StorageError: missing or unreachable.
    """
    if is_public(uri):
        return read_public(uri, image_px=image_px)
    content = storage.read_bytes(uri)
    if uri.lower().endswith(".safetensors"):
        try:
            return dict(load_tensors(content))
        except SafetensorError as error:
            raise _unreadable(uri, str(error)) from error
    try:
        with warnings.catch_warnings():  # about files that are refused, or loaded whole, anyway
            warnings.simplefilter("ignore")
            # Many trainers keep their arguments beside the weights: plain values, no code.
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        held = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            "E-CHECKPOINT-010",
            "the file holds more than tensors, and opening it could run code"
            + (f": {held[1]}" if held else ""),
            where=uri,
            todo="save a state dict: torch.save(model.state_dict(), FILE), or .safetensors",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a torn file raises whatever its next byte leads to
        raise _unreadable(uri, str(error)) from error
    tensors = _tensors_in(found)
    if not tensors:
        raise _unreadable(uri, "it holds no state dict")
    return tensors


def read_facts(uri: str) -> dict[str, JsonValue]:
    """Read what `export_backbone` wrote about a .safetensors file; empty for other files."""
    if not uri.lower().endswith(".safetensors") or "://" in uri:
        return {}
    try:
        with safe_open(uri, "pt") as opened:
            facts = json.loads((opened.metadata() or {}).get("sdclr", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def load_into(backbone: nn.Module, name: str, tensors: dict[str, Tensor], *, uri: str) -> None:
    """Load weights under any of the names of the module's head; the classifier is left out.

    Args:
        backbone: of `sdclr.backbone`.
        name: its name there.
        tensors: of `read_weights`.
        uri: where they are from, for messages.

    Raises:
        CheckpointError: they are of another architecture; it says what differs.
    """
    wanted = backbone.state_dict()
    fit = best_fit(backbone, name, tensors)
    found = fit.tensors
    # Old files lack this counter, which evaluation does not use.
    missing = [n for n in wanted if n not in found and not n.endswith("num_batches_tracked")]
    misshapen = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    unknown = list(fit.unknown)
    if fit.num_found < _SHARE_OF_NAMES * min(len(wanted), len(found)):
        raise _unnamed(name, uri, tensors, wanted, missing)
    if missing or misshapen or unknown:
        raise _foreign(name, uri, found, wanted, missing, misshapen, unknown)
    backbone.load_state_dict({n: found.get(n, wanted[n]) for n in wanted}, strict=True)


def _unnamed(
    name: str, uri: str, tensors: dict[str, Tensor], wanted: dict[str, Tensor], missing: list[str]
) -> CheckpointError:
    names = [n for n in tensors if n.endswith((".weight", ".bias"))] or list(tensors)
    prefix = common_prefix(names)
    names = sorted([n for n in names if not n.endswith(tuple(wanted))] or names)
    shown = f"they begin with {prefix!r}, such as " if prefix else "they are such as "
    return CheckpointError(
        "E-CHECKPOINT-370",
        f"the tensors of the file have other names than those of the backbone {name}: {shown}"
        f"{', '.join(n[:80] for n in names[:3])}; expected are {', '.join(missing[:3])}",
        where=uri,
        todo="save the tensors under torchvision's names, below any prefix; if the file is of "
        "another network, set model.backbone and model.stem to it",
    )


def _foreign(
    name: str,
    uri: str,
    found: dict[str, Tensor],
    wanted: dict[str, Tensor],
    missing: list[str],
    misshapen: list[str],
    unknown: list[str],
) -> CheckpointError:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(wanted)} tensors are missing, first {missing[0]}")
    if misshapen:
        first = misshapen[0]
        shapes = " instead of ".join(
            "x".join(map(str, t.shape)) for t in (found[first], wanted[first])
        )
        parts.append(f"{len(misshapen)} have another shape, first {first}: {shapes}")
    if unknown:
        parts.append(f"{len(unknown)} have no place, first {unknown[0]}")
    facts = read_facts(uri)
    stated = f"; the file says {facts['architecture']}" if "architecture" in facts else ""
    stated += f" with the stem {facts['stem']}" if stated and "stem" in facts else ""
    stem = "the stem, " if misshapen and misshapen[0].startswith(("conv1", "features.0")) else ""
    return CheckpointError(
        "E-CHECKPOINT-011",
        f"these weights do not fit the backbone {name}: {'; '.join(parts)}",
        where=uri,
        todo=f"set {stem}model.backbone and model.stem to those of the weights{stated}",
    )


def _tensors_in(found: object, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """Return all tensors in the dictionaries of a file; the keys on the way are the prefix."""
    if not isinstance(found, dict) or depth > _MAX_DEPTH:
        return {}
    tensors = {}
    for key, value in found.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = value
        else:
            tensors |= _tensors_in(value, f"{prefix}{key}.", depth + 1)
    return tensors


def _unreadable(uri: str, why: str) -> CheckpointError:
    return CheckpointError(
        "E-CHECKPOINT-012",
        f"the weights cannot be read: {why.splitlines()[-1].strip() if why else 'torn'}"[:300],
        where=uri,
        todo="give a state dict as .safetensors, or .pt saved by torch.save(model.state_dict(), .)",
    )
