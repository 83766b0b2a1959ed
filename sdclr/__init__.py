"""Self-damaging contrastive learning: the method alone, on torch, torchvision and numpy."""

from sdclr.augment import AugmentRecipe, ViewParams, apply_view, centre_view, sample_view
from sdclr.imageset import Batch, Feed, Images, ImageSet, SetFeed
from sdclr.loss import image_losses, nt_xent
from sdclr.loss_memory import LossMemory
from sdclr.order import EpochPlan, epoch_order, epoch_windows
from sdclr.prune import PruneRule, StarvedLayerError, magnitude_masks
from sdclr.recipe import Recipe, cifar_recipe
from sdclr.schedule import learning_rate, warmup_steps
from sdclr.state import StateError, TrainState, capture, restore
from sdclr.trainer import NonFiniteError, StepReport, Trainer
from sdclr.twin import Network, SimCLR, Twin, build_network

__all__ = [
    "AugmentRecipe",
    "Batch",
    "EpochPlan",
    "Feed",
    "ImageSet",
    "Images",
    "LossMemory",
    "Network",
    "NonFiniteError",
    "PruneRule",
    "Recipe",
    "SetFeed",
    "SimCLR",
    "StarvedLayerError",
    "StateError",
    "StepReport",
    "TrainState",
    "Trainer",
    "Twin",
    "ViewParams",
    "apply_view",
    "build_network",
    "capture",
    "centre_view",
    "cifar_recipe",
    "epoch_order",
    "epoch_windows",
    "image_losses",
    "learning_rate",
    "magnitude_masks",
    "nt_xent",
    "restore",
    "sample_view",
    "warmup_steps",
]
