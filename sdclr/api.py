"""The public names of the library: `import sdclr` imports them when one is first used."""

from sdclr.augment import AugmentRecipe, ViewParams, apply_view, centre_view, sample_view
from sdclr.encoder import Embeddings, Encoder, embed, load_backbone
from sdclr.imageset import Batch, Feed, Images, ImageSet, SetFeed
from sdclr.loss import image_losses, nt_xent
from sdclr.loss_memory import LossMemory
from sdclr.operations import OperationRule
from sdclr.order import EpochPlan, EpochStreams, epoch_order
from sdclr.photographs import Photographs, read_photographs
from sdclr.pretraining import Pretrained, pretrain
from sdclr.prune import PruneRule, StarvedLayerError, magnitude_masks
from sdclr.recipe import Recipe, cifar_recipe, photo_recipe
from sdclr.rendering import render_views
from sdclr.reports import NonFiniteError, StepReport
from sdclr.schedule import TemperatureSchedule, learning_rate, warmup_steps
from sdclr.state import StateError, TrainState, capture, restore
from sdclr.trainer import Trainer
from sdclr.twin import Network, SimCLR, Twin, build_network

__all__ = [
    "AugmentRecipe",
    "Batch",
    "Embeddings",
    "Encoder",
    "EpochPlan",
    "EpochStreams",
    "Feed",
    "ImageSet",
    "Images",
    "LossMemory",
    "Network",
    "NonFiniteError",
    "OperationRule",
    "Photographs",
    "Pretrained",
    "PruneRule",
    "Recipe",
    "SetFeed",
    "SimCLR",
    "StarvedLayerError",
    "StateError",
    "StepReport",
    "TemperatureSchedule",
    "TrainState",
    "Trainer",
    "Twin",
    "ViewParams",
    "apply_view",
    "build_network",
    "capture",
    "centre_view",
    "cifar_recipe",
    "embed",
    "epoch_order",
    "image_losses",
    "learning_rate",
    "load_backbone",
    "magnitude_masks",
    "nt_xent",
    "photo_recipe",
    "pretrain",
    "read_photographs",
    "render_views",
    "restore",
    "sample_view",
    "warmup_steps",
]
