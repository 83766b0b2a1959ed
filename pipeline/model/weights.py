"""Weights from files, ours or a stranger's, into a backbone: tensors only, no code is ever run.

`.safetensors`, or `.pt`, `.pth` and `.bin` read by torch with weights_only=True. Names may be
torchvision's or timm's, below a prefix such as `module.` or `backbone.`, inside `state_dict` or
`model`; a classifier is left out.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from pipeline import storage
from pipeline.errors import CheckpointError
from pipeline.model.timm_names import from_timm

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_INNER = ("state_dict", "model_state_dict", "model", "backbone", "network")
_PREFIXES = (
    "", "module.", "backbone.", "module.backbone.", "encoder.", "model.", "model.backbone.",
    "network.backbone.", "model.network.backbone.", "backbone.net.",
)  # fmt: skip
_MAX_DEPTH = 3


def is_weights_file(uri: str) -> bool:
    """Return whether this module reads files of this name."""
    return uri.lower().endswith(SUFFIXES)


def check_given(uri: str) -> None:
    """Refuse what is neither a file of weights nor the folder of a checkpoint; nothing is read.

    Raises:
        CheckpointError: it is not there, or is something else.
    """
    if not storage.exists(uri if is_weights_file(uri) else storage.join(uri, "commit.json")):
        raise CheckpointError(
            "E-CHECKPOINT-009",
            "there is no checkpoint here",
            where=uri,
            todo="give a folder that holds commit.json (RUN/models/METHOD/checkpoints/step-*), or "
            f"a file of weights ({', '.join(SUFFIXES)})",
        )


def read_weights(uri: str) -> dict[str, Tensor]:
    """Read the tensors of a file under the names it gives them.

    Raises:
        CheckpointError: not such a file, or one that holds more than tensors.
        StorageError: missing or unreachable.
    """
    content = storage.read_bytes(uri)
    if uri.lower().endswith(".safetensors"):
        try:
            return dict(load_tensors(content))
        except SafetensorError as error:
            raise _unreadable(uri, str(error)) from error
    try:
        with warnings.catch_warnings():  # about files that are refused, or loaded whole, anyway
            warnings.simplefilter("ignore")
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "E-CHECKPOINT-010",
            "the file holds more than tensors, and opening it could run code",
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


def read_facts(uri: str) -> dict[str, Any]:
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
    found = max(
        (from_timm(name, _below(tensors, prefix)) for prefix in _PREFIXES),
        key=lambda candidate: len(candidate.keys() & wanted.keys()),
    )
    # Old files lack this counter, which evaluation does not use.
    missing = [n for n in wanted if n not in found and not n.endswith("num_batches_tracked")]
    misshapen = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    blocks = {_block(n) for n in wanted}
    unknown = [n for n in found if n not in wanted and _block(n) in blocks and "." in _block(n)]
    if missing or misshapen or unknown:
        raise _foreign(name, uri, found, wanted, missing, misshapen, unknown)
    backbone.load_state_dict({n: found.get(n, wanted[n]) for n in wanted}, strict=True)


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
    said = f"; the file says {facts['architecture']}" if "architecture" in facts else ""
    said += f" with the stem {facts['stem']}" if said and "stem" in facts else ""
    stem = "the stem, " if misshapen and misshapen[0].startswith(("conv1", "features.0")) else ""
    return CheckpointError(
        "E-CHECKPOINT-011",
        f"these weights do not fit the backbone {name}: {'; '.join(parts)}",
        where=uri,
        todo=f"set {stem}model.backbone and model.stem to those of the weights{said}",
    )


def _block(name: str) -> str:
    """Return the block `layer1.0` of `layer1.0.conv1.weight`; extra blocks are another network."""
    return ".".join(name.split(".")[:2])


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _tensors_in(found: object, depth: int = 0) -> dict[str, Tensor]:
    """Find the state dict in a file's content: itself, or inside a known entry."""
    if not isinstance(found, dict) or depth > _MAX_DEPTH:
        return {}
    tensors = {str(n): t for n, t in found.items() if isinstance(t, Tensor)}
    if tensors:
        return tensors
    for key in _INNER:
        if tensors := _tensors_in(found.get(key), depth + 1):
            return tensors
    return {}


def _unreadable(uri: str, why: str) -> CheckpointError:
    return CheckpointError(
        "E-CHECKPOINT-012",
        f"the weights cannot be read: {why.splitlines()[-1].strip() if why else 'torn'}"[:300],
        where=uri,
        todo="give a state dict as .safetensors, or .pt saved by torch.save(model.state_dict(), .)",
    )
