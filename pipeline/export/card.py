"""The model card: what an exported backbone is, what it scored, how to load it without our code."""

from __future__ import annotations

from typing import Any

from pipeline.record.scores import METRICS, percent

_PROGRAM = """import torch
program = torch.export.load("features.pt2").module()
features = program(images)  # (B, 3, {side}, {side}) in [0, 1] to (B, F)
"""
_ONNX = """import onnxruntime
session = onnxruntime.InferenceSession("features.onnx")
(features,) = session.run(["features"], {{"images": images}})  # float32, as above
"""
_FILES = {
    "backbone.safetensors": "weights under torchvision's key names; the metadata entry `sdclr` "
    "holds the facts below as JSON",
    "backbone.timm.safetensors": "the same under timm's key names",
    "features.pt2": "program of torch.export, normalisation inside, any batch size",
    "features.onnx": "the same as ONNX",
}


def model_card(facts: dict[str, Any], files: tuple[str, ...]) -> str:
    """Write the model card in Markdown.

    Args:
        facts: of the export stage.
        files: names of the files beside the card.
    """
    title = f"# {facts['architecture']}, {str(facts.get('method', '')).upper()}"
    parts = [title, _what(facts), _table(facts), _loading(facts, files), _details(facts)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def loading_code(facts: dict[str, Any]) -> str:
    """Write Python code that loads backbone.safetensors into plain torchvision."""
    name, stem = facts["architecture"], facts.get("stem")
    if name == "resnet8":
        return ""  # torchvision has none
    lines = ["import torch, torchvision", "from safetensors.torch import load_file"]
    lines.append(f"model = torchvision.models.{name}()")
    head = "classifier[2]" if name.startswith("convnext") else "fc"
    lines.append(f"model.{head} = torch.nn.Identity()")
    if stem == "cifar":
        lines.append("model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)")
        lines.append("model.maxpool = torch.nn.Identity()")
    lines.append('model.load_state_dict(load_file("backbone.safetensors"))')
    lines.append("model.eval()  # input: (images - input_mean) / input_std")
    return "\n".join(lines) + "\n"


def _what(facts: dict[str, Any]) -> str:
    method = {
        "sdclr": "Self-Damaging Contrastive Learning (Jiang et al., ICML 2021)",
        "simclr": "SimCLR (Chen et al., ICML 2020)",
    }.get(str(facts.get("method")), "contrastive learning")
    return (
        f"Pre-trained without labels by {method} on {facts.get('pretrain_images', '?')} images of "
        f"`{facts.get('data_name', '?')}`, {facts.get('epochs', '?')} epochs (step "
        f"{facts.get('step', '?')}), seed {facts.get('seed', '?')}. This is the dense branch "
        "without projection head and classifier: images to features."
    )


def _table(facts: dict[str, Any]) -> str:
    scores = facts.get("scores") or []
    if not scores:
        return "## Scores\n\nThis checkpoint has not been evaluated."
    rows = ["| protocol | Many | Medium | Few | STD | All | n |", "|---|---|---|---|---|---|---|"]
    for score in scores:
        spread = score.get("spread") or {}
        cells = [
            percent(score[m]) + (f" ± {percent(spread[m])}" if m in spread else "") for m in METRICS
        ]
        rows.append(f"| {score['protocol']} | {' | '.join(cells)} | {score['n']} |")
    notes = [f"- `{score['protocol']}`: {score['note']}" for score in scores if score.get("note")]
    intro = (
        f"Accuracy in % on the set `{facts.get('scored_on')}` of `{facts.get('data_name')}`; "
        "groups by the number of pre-training images; STD is the population standard deviation of "
        "Many, Medium and Few (lower is more even); ± is the standard deviation over n draws."
    )
    return "\n".join(["## Scores", "", intro, "", *rows, "", *notes])


def _loading(facts: dict[str, Any], files: tuple[str, ...]) -> str:
    side = facts["crop_px"]
    codes = {
        "features.pt2": _PROGRAM.format(side=side),
        "backbone.safetensors": loading_code(facts),
        "features.onnx": _ONNX.format(),
    }
    blocks = [f"```python\n{code}```" for name, code in codes.items() if code and name in files]
    listed = [f"- `{name}`: {text}" for name, text in _FILES.items() if name in files]
    return "\n".join(["## Files", "", *listed, "", "\n\n".join(blocks)])


def _details(facts: dict[str, Any]) -> str:
    resize = facts.get("resize_px")
    view = f"short side resized to {resize} px, then " if resize else ""
    lines = [
        f"- Input: RGB in [0, 1], {view}centre crop of {facts['crop_px']} px; "
        f"mean {list(facts.get('input_mean', []))}, std {list(facts.get('input_std', []))}",
        f"- Architecture: torchvision's {facts['architecture']}, stem `{facts.get('stem')}`",
        f"- Configuration: `{facts.get('config_hash')}`",
        f"- Data set: `{facts.get('data_hash')}`",
        "- Limits: the scores above are all that is known about it; what it was not trained on, "
        "it was not tested on.",
    ]
    return "\n".join(["## Details", "", *lines])
