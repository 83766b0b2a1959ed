"""Settings that fight each other, named before a run and when it starts; none of them is an error.

What cannot work is refused elsewhere: `pipeline.train.driver.check`.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline import feed
from pipeline.config import Config
from pipeline.console import counted
from pipeline.dataset.manifest import Manifest
from pipeline.model import build

_LEAST_CROP = 0.7
_MOST_DROPPED = 1 / 3


def conflicts(config: Config, manifest: Manifest) -> list[str]:
    """Return a sentence for each conflict, with the keys to change; empty when there is none.

    Raises:
        ConfigError: the size of views is not known.
    """
    return [text for text in (
        _views(config), _small_crop(config, manifest), _small_canvas(config, manifest),
        _small_stored(config, manifest), _dropped(config, manifest),
    ) if text]  # fmt: skip


def _views(config: Config) -> str:
    a = config.augment
    if config.data.source == "digits" or any((a.hflip_prob, a.saturation, a.hue, a.gray_prob)):
        return ""
    return (
        "the views neither mirror nor change colours: augment.* as for the demo's grey digits; "
        "tune_configs/photos.yaml has the published ones for photographs"
    )


def _small_crop(config: Config, manifest: Manifest) -> str:
    if not _sees_the_centre_only(config, manifest):
        return ""
    crop, resize = build.crop_px(config, manifest), build.resize_px(config, manifest) or 0
    return (
        f"evaluation, mining and export see the centre {crop} px of {resize} px only, "
        f"{100 * (crop / resize) ** 2:.0f} % of a square image: leave out evaluate.resize_px"
    )


def _sees_the_centre_only(config: Config, manifest: Manifest) -> bool:
    resize = build.resize_px(config, manifest)
    return resize is not None and build.crop_px(config, manifest) < _LEAST_CROP * resize


def _small_canvas(config: Config, manifest: Manifest) -> str:
    crop, resize = build.crop_px(config, manifest), build.resize_px(config, manifest) or 0
    side = min(feed.canvas_size(config, manifest))
    if manifest.image.height_px is not None or side >= max(crop, resize):
        return ""
    key = "evaluate.resize_px" if config.feed.canvas_px is None else "feed.canvas_px"
    if key == "evaluate.resize_px" and _sees_the_centre_only(config, manifest):
        return ""  # one key, one warning
    return (
        f"images are reduced to {side} px and enlarged again to {max(crop, resize)} px: leave out "
        f"{key}"
    )


def _small_stored(config: Config, manifest: Manifest) -> str:
    stored = config.ingest.resize_short_px
    least = build.resize_px(config, manifest) or build.crop_px(config, manifest)
    if manifest.image.height_px is not None or stored is None or stored >= least:
        return ""
    return (
        f"photos are stored with a short side of {stored} px and enlarged again to {least} px: "
        f"raise ingest.resize_short_px, or set it to null"
    )


def _dropped(config: Config, manifest: Manifest) -> str:
    return _waiting(config, manifest) if _is_much(config, manifest) else ""


def left_out(config: Config, manifest: Manifest) -> list[str]:
    """Say how many images an epoch leaves out; empty when none, or when `conflicts` says it.

    Raises:
        DataError: the set does not fill a batch.
    """
    text = "" if _is_much(config, manifest) else _waiting(config, manifest)
    return [text] if text else []


def _is_much(config: Config, manifest: Manifest) -> bool:
    rows = manifest.sets["pretrain"].rows
    return rows % config.train.global_batch >= _MOST_DROPPED * rows and config.train.drop_last


def _waiting(config: Config, manifest: Manifest) -> str:
    epoch, t = feed.epoch_plan(config, manifest), config.train
    rest = epoch.num_images % t.global_batch
    num = rest - epoch.tail
    if num == 0:
        return ""
    text = f"{num} of {counted(epoch.num_images, 'image')} wait for another epoch"
    more = 0 if isinstance(t.workers, tuple) else replace(epoch, drop_last=False).tail - epoch.tail
    if more == 0:  # too few for a batch of their own, or the keys allow none
        return f"{text}: they do not fill a batch of {t.global_batch}"
    them = "them" if more == num else f"{more} of them"
    return f"{text}: train.drop_last=false takes {them}, as may another train.global_batch"
