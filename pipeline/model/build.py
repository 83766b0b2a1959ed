"""From the configuration to the objects of `sdclr`, and from a checkpoint back to a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save as save_tensors
from torch import nn

from pipeline import storage
from pipeline.config import Config
from pipeline.config.method import SDCLR as SDCLRKeys
from pipeline.config.method import SimCLR as SimCLRKeys
from pipeline.config.public_weights import absolute, is_public
from pipeline.dataset.manifest import Manifest
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model import weights
from pipeline.model.libraries import unusable
from pipeline.model.public import refuse_other_input
from sdclr import (
    AugmentRecipe,
    LossMemory,
    Network,
    PruneRule,
    Recipe,
    SimCLR,
    TrainState,
    Twin,
    build_network,
)
from sdclr.backbone import BackboneError
from sdclr.encoder import RESIZE_PER_CROP
from sdclr.loss_memory import PUBLISHED_MOMENTUM
from sdclr.methods import METHODS, method_class
from sdclr.operations import OperationRule
from sdclr.schedule import TemperatureSchedule
from sdclr.twin import IMAGENET_MEAN, IMAGENET_STD


def crop_px(config: Config, manifest: Manifest) -> int:
    """Return the side of a view in px: the configured one, or that of raw square images.

    Raises:
        ConfigError: the images have no common size and none is configured.
    """
    if config.augment.crop_px is not None:
        return config.augment.crop_px
    height_px, width_px = manifest.image.height_px, manifest.image.width_px
    if height_px is None or height_px != width_px:
        raise ConfigError(
            "E-CONFIG-029",
            "images of different sizes need a size of views",
            where="augment.crop_px",
            todo="set augment.crop_px, for example augment.crop_px=224",
        )
    return height_px


def resize_px(config: Config, manifest: Manifest) -> int | None:
    """Return the short side before evaluation's centre crop; None when images fit a view.

    Raises:
        ConfigError: the configured side is smaller than the crop.
    """
    crop, configured = crop_px(config, manifest), config.evaluate.resize_px
    if configured is not None and configured < crop:
        raise ConfigError(
            "E-CONFIG-030",
            f"images of {configured} px cannot be cropped to {crop} px",
            where="evaluate.resize_px",
            todo=f"set it to {crop} or more, or leave it out",
        )
    if configured is not None:
        return configured
    side_px = manifest.image.height_px
    if side_px is None or side_px != manifest.image.width_px:
        return round(crop * RESIZE_PER_CROP)
    return None if side_px == crop else crop  # the whole of a small square image


def peak_lr(config: Config) -> float:
    """Return the highest learning rate: the configured one scaled by the global batch."""
    return config.train.lr_per_256 * config.train.global_batch / 256


FINAL_LR = 1e-6
"""Where the cosine ends, as published."""


PERIOD_FRAC = 0.2
"""The period of the temperature as a fraction of the run, as published: 400 of 2000 epochs."""


def keys_of(config: Config, method: str) -> SDCLRKeys | SimCLRKeys:
    """Return the section that gives a method's temperature and projection head."""
    return config.sdclr if METHODS[method].has_twin else config.simclr


_ANY_PX = 32


def training_recipe(config: Config, manifest: Manifest, method: str) -> Recipe:
    """Return the recipe that the trainer of one method gets."""
    return _recipe(config, method, crop_px(config, manifest))


def _recipe(config: Config, method: str, side_px: int) -> Recipe:
    a, t, s = config.augment, config.train, config.sdclr
    augment = AugmentRecipe(
        crop_px=side_px,
        crop_scale_min=a.crop_scale[0],
        crop_scale_max=a.crop_scale[1],
        crop_ratio_min=a.crop_ratio[0],
        crop_ratio_max=a.crop_ratio[1],
        hflip_prob=a.hflip_prob,
        jitter_prob=a.jitter_prob,
        brightness=a.brightness,
        contrast=a.contrast,
        saturation=a.saturation,
        hue=a.hue,
        gray_prob=a.gray_prob,
        blur_prob=a.blur_prob,
        blur_sigma_min=a.blur_sigma[0],
        blur_sigma_max=a.blur_sigma[1],
    )
    return Recipe(
        method=method,
        epochs=t.epochs,
        lr=peak_lr(config),
        momentum=t.momentum,
        weight_decay=t.weight_decay,
        warmup_epochs=t.warmup_epochs,
        final_lr=FINAL_LR,
        temperature=keys_of(config, method).temperature,
        augment=augment,
        seed=config.run.seed,
        prune=PruneRule(
            prune_ratio=s.prune_ratio,
            scope=s.scope,
            exclude_stem=s.exclude_stem,
            random_ratio=s.random_ratio,
        ),
        boost=OperationRule(num_operations=config.bcl.operations, strength=config.bcl.strength),
        refresh_epochs=s.refresh_epochs,
        dual_norm=s.dual_norm,
        schedule=TemperatureSchedule(
            low=config.ts.temperature[0],
            high=config.ts.temperature[1],
            period_epochs=config.ts.period_epochs or t.epochs * PERIOD_FRAC,
        ),
        precision=t.forward_precision,
        sync_batchnorm=t.sync_batchnorm,
        micro_batch=t.micro_batch,
        compile=t.compile,
        optimizer=t.optimizer,
        decay_all=t.decay_all,
    )


def loss_memory(config: Config, method: str, num_images: int) -> LossMemory | None:
    """Return the memory of the pre-training images' losses, if configured or needed."""
    momentum = config.train.loss_memory
    if momentum is None and method_class(method).needs_losses:
        momentum = PUBLISHED_MOMENTUM
    return None if momentum is None else LossMemory(num_images, momentum=momentum)


def architecture(config: Config, method: str) -> dict[str, Any]:
    """Return the arguments of `sdclr.build_network`, by name."""
    return {
        "backbone": config.model.backbone,
        "stem": config.model.stem,
        "head_depth": keys_of(config, method).head_depth,
        "embedding_dim": config.model.embedding_dim,
        "seed": config.run.seed,
        "image_px": config.augment.crop_px,
    }


def new_network(config: Config, method: str, *, init_from: str | None = None) -> Network:
    """Return a method's first network: weights by the seed, the backbone's by `init_from`.

    Raises:
        CheckpointError: those weights are of another architecture.
        ConfigError: there is no such backbone, or none with this stem for views of this size.
    """
    try:
        network = build_network(**architecture(config, method))
    except BackboneError as error:
        raise unusable(config.model.backbone, error) from error
    if init_from is not None:
        uri = init_from.replace("{method}", method)
        name, side_px = config.model.backbone, config.augment.crop_px
        load_backbone(uri, name, network.backbone, image_px=side_px)
    return network


def new_model(config: Config, method: str, network: Network) -> Twin | SimCLR:
    """Return a method's module around its network, the one that its trainer makes."""
    # No module depends on the side of the views, which only a data set may know.
    recipe = _recipe(config, method, config.augment.crop_px or _ANY_PX)
    return method_class(method).model(network, recipe)


def state_bytes(config: Config, method: str) -> tuple[int, int]:
    """Return the bytes of the exchanged weights and of a checkpoint."""
    model = new_model(config, method, new_network(config, method))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # A checkpoint holds what the optimizer keeps of every weight beside the state of the model.
    state = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    kept = {"sgd": 1, "lars": 1, "adamw": 2}[config.train.optimizer]
    return weights, kept * weights + state


def trained_model(config: Config, method: str, state: TrainState) -> Twin | SimCLR:
    """Load the model of a checkpoint in evaluation mode.

    Raises:
        CheckpointError: the tensors are of another architecture.
    """
    model = new_model(config, method, new_network(config, method))
    prefix = "model."
    tensors = {n[len(prefix) :]: t for n, t in state.tensors.items() if n.startswith(prefix)}
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            "E-CHECKPOINT-004",
            f"the checkpoint is of another architecture: {str(error).splitlines()[-1].strip()}",
            where=f"model.backbone={config.model.backbone}, model.stem={config.model.stem}",
            todo="use the configuration that the checkpoint was trained with",
        ) from error
    model.eval()
    return model


def export_backbone(uri: str, backbone: nn.Module, facts: Mapping[str, object]) -> None:
    """Write the dense backbone under torchvision's key names, with what one needs to use it.

    The file's metadata has one entry, `sdclr`: JSON with the facts, and mean and std of the
    normalisation of its input. One entry only, because safetensors writes several in random order.
    """
    described = dict(facts) | {"input_mean": IMAGENET_MEAN, "input_std": IMAGENET_STD}
    metadata = {"sdclr": json.dumps(described, sort_keys=True)}
    tensors = {n: t.detach().cpu().contiguous() for n, t in backbone.state_dict().items()}
    storage.write_bytes(uri, save_tensors(tensors, metadata))


def init_uri(config: Config) -> str | None:
    """Return the absolute URI of the weights to start from; call it on the driver."""
    uri = config.train.init_from
    return None if uri is None else absolute(uri)


def load_backbone(uri: str, name: str, backbone: nn.Module, *, image_px: int | None = None) -> None:
    """Load weights to start from: a file that `pipeline.model.weights` reads, or public ones.

    Raises:
        CheckpointError: not such weights, of another architecture, or for other inputs.
    """
    if is_public(uri):
        refuse_other_input(uri)
    tensors = weights.read_weights(uri, image_px=image_px)
    weights.load_into(backbone, name, tensors, uri=uri)
