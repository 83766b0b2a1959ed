"""The model card: what an exported backbone is, what it scored, how to load it without our code."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.console import counted
from pipeline.export.facts import Facts
from pipeline.export.loading import library_of, loading_code
from pipeline.record.evaluation import METRICS
from pipeline.record.scores import percent
from pipeline.record.steps import card_step
from sdclr.methods import METHODS

_PROGRAM = """import torch
program = torch.export.load("features.pt2").module()
features = program(images)  # (B, 3, {sides} in [0, 1] to (B, F)
"""
_ONNX = """import onnxruntime
session = onnxruntime.InferenceSession("features.onnx")
(features,) = session.run(["features"], {{"images": images}})  # float32 (B, 3, {sides} as above
"""
_FILES = {
    "backbone.safetensors": "weights under {library}'s key names; the metadata entry `sdclr` "
    "holds the facts below as JSON",
    "backbone.timm.safetensors": "the same under timm's key names",
    "features.pt2": "program of torch.export, normalisation inside, any batch size",
    "features.onnx": "the same as ONNX",
}


def model_card(facts: Facts, files: tuple[str, ...], *, any_size: Collection[str] = ()) -> str:
    """Write the model card in Markdown.

    Args:
        facts: of the export stage.
        files: names of the files beside the card.
        any_size: those of the programs that take images of other sizes than `facts.crop_px`.
    """
    title = f"# {facts.architecture}, {facts.method.upper()}"
    alarms = "\n".join(f"> **Alarm of the training:** {text}." for text in facts.alarms)
    loading = _loading(facts, files, any_size=any_size)
    parts = [title, alarms, _what(facts), _table(facts), loading, _details(facts)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _what(facts: Facts) -> str:
    entry = METHODS.get(facts.method)
    method = entry.source if entry else "contrastive learning"
    return (
        f"Pre-trained without labels by {method} on {counted(facts.pretrain_images, 'image')} of "
        f"`{facts.data_name}`, {counted(facts.epochs, 'epoch')} "
        f"{card_step(facts.step)}, seed {facts.seed}. This is the dense branch "
        "without projection head and classifier: images to features."
    )


def _table(facts: Facts) -> str:
    if not facts.scores:
        return "## Scores\n\nThis checkpoint has not been evaluated."
    rows = ["| protocol | Many | Medium | Few | STD | All | n |", "|---|---|---|---|---|---|---|"]
    for score in facts.scores:
        cells = [
            percent(getattr(score, metric))
            + ("" if score.spread is None else f" ± {percent(getattr(score.spread, metric))}")
            for metric in METRICS
        ]
        rows.append(f"| {score.protocol} | {' | '.join(cells)} | {score.n} |")
    notes = [f"- `{score.protocol}`: {score.note}" for score in facts.scores if score.note]
    intro = (
        f"Accuracy in % on the set `{facts.scored_on}` of `{facts.data_name}`; "
        "groups by the number of pre-training images; STD is the population standard deviation of "
        "Many, Medium and Few (lower is more even); ± is the standard deviation over n draws."
    )
    return "\n".join(["## Scores", "", intro, "", *rows, "", *notes])


def _loading(facts: Facts, files: tuple[str, ...], *, any_size: Collection[str]) -> str:
    side = facts.crop_px
    sides = {
        name: f"H, W), H and W from {side} px on," if name in any_size else f"{side}, {side})"
        for name in ("features.pt2", "features.onnx")
    }
    codes = {
        "features.pt2": _PROGRAM.format(sides=sides["features.pt2"]),
        "backbone.safetensors": loading_code(facts),
        "features.onnx": _ONNX.format(sides=sides["features.onnx"]),
    }
    blocks = [f"```python\n{code}```" for name, code in codes.items() if code and name in files]
    library = library_of(facts.architecture)
    listed = [
        f"- `{name}`: {text.format(library=library)}"
        + (f", images of {side} x {side} px only" if name in sides and name not in any_size else "")
        for name, text in _FILES.items()
        if name in files
    ]
    return "\n".join(["## Files", "", *listed, "", "\n\n".join(blocks)])


def _details(facts: Facts) -> str:
    resize = facts.resize_px
    view = f"short side resized to {resize} px, then " if resize else ""
    lines = [
        f"- Input: RGB in [0, 1], {view}centre crop of {facts.crop_px} px; "
        f"mean {list(facts.input_mean)}, std {list(facts.input_std)}",
        f"- Architecture: {library_of(facts.architecture)}'s "
        f"{facts.architecture.rpartition('/')[2]}, stem `{facts.stem}`",
        f"- Configuration: `{facts.config_hash}`",
        f"- Data set: `{facts.data_hash}`",
        "- Limits: the scores above are all that is known about it; what it was not trained on, "
        "it was not tested on.",
    ]
    return "\n".join(["## Details", "", *lines])
