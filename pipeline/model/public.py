"""Public weights: torchvision and timm download them, and keep them in their own caches.

`torchvision:NAME:WEIGHTS`, as `torchvision.models.get_model_weights(NAME)` lists them, and
`timm:NAME`, with or without the tag of the weights. Only tensors are read.
"""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from pipeline.config import Config
from pipeline.config.public_weights import PublicName, parse_public
from pipeline.errors import CheckpointError
from pipeline.model.libraries import timm_arguments
from sdclr.twin import IMAGENET_MEAN, IMAGENET_STD

_POSITIONS = "encoder.pos_embedding"


def read_public(uri: str, *, image_px: int | None) -> dict[str, Tensor]:
    """Return the tensors of public weights under their library's names.

    Args:
        uri: of the form that `pipeline.config.public_weights` knows.
        image_px: side of the images, for transformers; None = that of the weights.

    Raises:
        CheckpointError: there are no such weights, or they can be neither found nor downloaded.
    """
    name = parse_public(uri)
    if name.library == "timm":
        return _of_timm(name, uri, image_px)
    entry = _entry(name, uri)
    try:
        tensors: dict[str, Tensor] = dict(
            entry.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
        )
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(
            "E-CHECKPOINT-762",
            f"the downloaded weights are damaged: {str(error).splitlines()[0][:200]}",
            where=uri,
            todo=f"delete {_file_of(entry)}, so that the weights are downloaded again",
        ) from error
    except OSError as error:
        raise CheckpointError(
            "E-CHECKPOINT-761",
            f"the weights are not in torch's cache and cannot be downloaded: {error}",
            where=uri,
            todo=f"download {entry.url} where there is a network and copy it to "
            f"{_file_of(entry)}, or set TORCH_HOME to a folder that has it",
        ) from error
    if name.network.startswith("vit") and image_px is not None:
        tensors = _resized(name, tensors, image_px)
    return tensors


def normalisation(uri: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the three channels that public weights were trained with.

    Raises:
        CheckpointError: there are no such weights.
    """
    name = parse_public(uri)
    if name.library == "timm":
        config = _timm(name, uri).models.get_pretrained_cfg(name.network)
        return tuple(config.mean), tuple(config.std)
    preset = _entry(name, uri).transforms()
    return tuple(preset.mean), tuple(preset.std)


def refuse_other_input(uri: str) -> None:
    """Refuse public weights that expect other inputs than a training gives.

    Raises:
        CheckpointError: their images were normalised by another mean or std.
    """
    mean, std = normalisation(uri)
    if (mean, std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise CheckpointError(
            "E-CHECKPOINT-763",
            f"these weights expect images normalised by mean {list(mean)}, std {list(std)}, and a "
            f"training normalises by {list(IMAGENET_MEAN)}, {list(IMAGENET_STD)}",
            where=uri,
            todo="start from other weights; evaluate.public takes these as they are",
        )


def own_config(config: Config, uri: str) -> Config:
    """Return the configuration with the network that public weights are of."""
    model = {"backbone": parse_public(uri).backbone, "stem": "imagenet"}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "train": config.train.model_copy(update={"sync_batchnorm": False}),
        }
    )


def public_hash(uri: str) -> str:
    """Return a SHA-256 of the tensors of public weights."""
    tensors = {name: t.contiguous() for name, t in read_public(uri, image_px=None).items()}
    return hashlib.sha256(save_tensors(tensors)).hexdigest()


def _entry(name: PublicName, uri: str) -> Any:
    import torchvision.models as zoo

    from sdclr.zoo import NETWORKS

    known = zoo.get_model_weights(name.network) if name.network in NETWORKS else None
    if known is None or name.weights not in known.__members__:
        have = ", ".join(known.__members__) if known else "none"
        raise CheckpointError(
            "E-CHECKPOINT-760",
            f"torchvision has no weights {name.weights} of {name.network}; it has {have}",
            where=uri,
            todo="give one of torchvision.models.get_model_weights(NAME), as "
            "torchvision:NAME:WEIGHTS",
        )
    return known[name.weights]


def _file_of(entry: Any) -> str:
    return f"{torch.hub.get_dir()}/checkpoints/{entry.url.rpartition('/')[2]}"


def _resized(name: PublicName, tensors: dict[str, Tensor], image_px: int) -> dict[str, Tensor]:
    patch_px = int(name.network.split("_")[2])
    num_patches = (image_px // patch_px) ** 2
    if tensors[_POSITIONS].shape[1] == 1 + num_patches:
        return tensors
    from torchvision.models.vision_transformer import interpolate_embeddings

    resized = interpolate_embeddings(image_px, patch_px, dict(tensors))
    return dict(resized)


def _timm(name: PublicName, uri: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise CheckpointError(
            "E-CHECKPOINT-764",
            "the weights need a package that is not installed: timm",
            where=uri,
            todo="python -m pip install timm, or give weights of torchvision",
        ) from error
    if not timm.is_model_pretrained(name.network):
        raise CheckpointError(
            "E-CHECKPOINT-760",
            f"timm has no weights {name.network}",
            where=uri,
            todo="give one of timm.list_pretrained(), as timm:NAME",
        )
    return timm


def _of_timm(name: PublicName, uri: str, image_px: int | None) -> dict[str, Tensor]:
    timm = _timm(name, uri)
    more = timm_arguments(name.network, image_px)
    try:
        network = timm.create_model(name.network, pretrained=True, num_classes=0, **more)
    except Exception as error:  # of whichever client timm downloads with
        raise CheckpointError(
            "E-CHECKPOINT-761",
            "the weights are not in timm's cache and cannot be downloaded: "
            f"{str(error).splitlines()[0][:200] if str(error) else type(error).__name__}",
            where=uri,
            todo=f"run timm.create_model('{name.network}', pretrained=True) where there is a "
            "network and copy its cache, the folder HF_HOME",
        ) from error
    return dict(network.state_dict())
