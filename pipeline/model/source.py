"""Source of a model that is to be scored or exported, and the model itself.

Four kinds: a checkpoint of a run, weights of any origin for its network, public weights with a
network of their own, and the network before training. Raw pixels can stand beside them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from pydantic import JsonValue

from pipeline.config import Config
from pipeline.config.public_weights import absolute
from pipeline.model import build, checkpoint, weights
from pipeline.model.public import normalisation, own_config
from sdclr import SimCLR, TrainState, Twin

UNTRAINED = "untrained"
PIXELS = "pixels"
"""A network that there is not: the image itself, made small."""


@dataclass(frozen=True)
class ModelSource:
    """One model.

    Args:
        name: as tables show it.
        uri: a checkpoint's folder, a file of weights or a name of public ones; None = the network
            before training.
        method: of a checkpoint of the configuration's own run, which is loaded whole; None = only
            the dense backbone is loaded.
        config_hash: that the checkpoint must have; None = any.
        is_public: the weights are of a network of their own, not of the configuration's.
    """

    name: str
    uri: str | None = None
    method: str | None = None
    config_hash: str | None = None
    is_public: bool = False


def load_model(config: Config, source: ModelSource, *, init_from: str | None) -> Twin | SimCLR:
    """Return the model in evaluation mode.

    Args:
        config: of the run; gives the architecture.
        source: what to load.
        init_from: URI of the weights that the run started from; None = by the seed.

    Raises:
        CheckpointError: broken, unsafe to open, or of another architecture.
    """
    if source.uri is not None and source.is_public:
        return _public_model(config, source.uri)
    if source.uri is not None and source.method is not None:
        state = checkpoint.load(source.uri, config_hash=source.config_hash)
        return build.trained_model(config, source.method, state)
    start = init_from if source.uri is None else None
    network = build.new_network(config, config.train.methods[0], init_from=start)
    if source.uri is not None:
        tensors = (
            weights.read_weights(source.uri, image_px=config.augment.crop_px)
            if weights.is_weights_file(source.uri)
            else checkpoint.load(source.uri, config_hash=source.config_hash).tensors
        )
        weights.load_into(network.backbone, config.model.backbone, tensors, uri=source.uri)
    model = SimCLR(network)
    model.eval()
    return model


def _public_model(config: Config, uri: str) -> SimCLR:
    """Return the network that public weights are of, with the normalisation that they expect."""
    own = own_config(config, uri)
    network = build.new_network(own, config.train.methods[0])
    tensors = weights.read_weights(uri, image_px=config.augment.crop_px)
    weights.load_into(network.backbone, own.model.backbone, tensors, uri=uri)
    mean, std = normalisation(uri)
    network.mean.copy_(torch.tensor(mean).view(1, 3, 1, 1))
    network.std.copy_(torch.tensor(std).view(1, 3, 1, 1))
    model = SimCLR(network)
    model.eval()
    return model


def weights_hash(source: ModelSource, config_hash: str) -> str:
    """Return the SHA-256 of the file with a model's weights; before training, of what makes them.

    Args:
        source: the model.
        config_hash: of the run, which names the weights before training.

    Raises:
        CheckpointError: there is no finished checkpoint.
        StorageError: there is no such file.
    """
    if source.uri is None:
        return hashlib.sha256(f"{source.name} of {config_hash}".encode()).hexdigest()
    if weights.is_weights_file(source.uri):
        return weights.file_hash(source.uri)
    return checkpoint.weights_hash(source.uri)


def given_source(config: Config, uri: str) -> tuple[ModelSource, dict[str, JsonValue]]:
    """Load the model at a user's URI; return its step and epochs if the file has them.

    It is loaded once, so that what does not fit is reported before any worker starts.

    Raises:
        CheckpointError: nothing that can be scored is there, or it does not fit the configuration.
    """
    uri = absolute(uri)
    source = ModelSource("checkpoint", uri)
    weights.check_given(uri)
    load_model(config, source, init_from=None)
    if weights.is_weights_file(uri):
        return source, weights.read_facts(uri)
    return source, dict(checkpoint.load(uri, config_hash=None).numbers)


def public_sources(config: Config) -> list[ModelSource]:
    """Load the public models to score beside the run's own once; return where they are.

    Raises:
        CheckpointError: there are no such weights, or they cannot be downloaded.
        ConfigError: their network cannot take views of the configured size.
    """
    sources = [ModelSource(uri, uri, is_public=True) for uri in config.evaluate.public]
    for source in sources:
        load_model(config, source, init_from=None)
    return sources


def trained_epochs(config: Config, state: TrainState) -> int:
    """Return the whole epochs that a checkpoint of this configuration was trained for."""
    return config.train.epochs * int(state.numbers["step"]) // int(state.numbers["num_steps"])
