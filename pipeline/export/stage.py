"""The export stage: each trained backbone in forms that need none of this project's code.

    RUN/export/METHOD/backbone.safetensors       the library's key names, facts in the metadata
                      backbone.timm.safetensors  the same under timm's names, where they differ
                      features.pt2               torch.export program, normalisation inside
                      features.onnx              the same as ONNX, on request
                      README.md                  model card with the scores

Every form is read back and must give the network's own features before it is published.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib import import_module

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from pipeline import storage
from pipeline.dataset.description import source_name
from pipeline.errors import ConfigError, PipelineError
from pipeline.export.card import model_card
from pipeline.export.facts import Facts
from pipeline.export.loading import library_of
from pipeline.model import build, checkpoint, timm_names
from pipeline.model.source import trained_epochs
from pipeline.record import provenance
from pipeline.record.context import RunContext
from pipeline.record.evaluation import Evaluation
from pipeline.record.run import Run, RunAlarm
from sdclr import TrainState
from sdclr.export import (
    FeatureModel,
    check_images,
    exported_program,
    largest_difference,
    onnx_program,
    other_width_px,
)
from sdclr.twin import Network

MAX_DIFFERENCE = 1e-5
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_INSTALL = "python -m pip install onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0"


def export(run: RunContext) -> dict[str, list[str]]:
    """Export the newest checkpoint of every method of the run.

    Returns:
        Folder -> names of the files in it.

    Raises:
        CheckpointError: a method has no finished checkpoint.
        ConfigError: a format needs a package that is not installed.
        PipelineError: a form does not give the network's features.
    """
    config, written = run.config, {}
    check_formats(config.export.formats)
    for method in config.train.methods:
        state, _ = checkpoint.newest(run.run_uri, method, config_hash=run.config_hash)
        network = build.trained_model(config, method, state).network
        target = folder_of(run.run_uri, method)
        written[target] = export_network(
            network, _facts(run, method, state), target, formats=config.export.formats
        )
    return written


def check_formats(formats: tuple[str, ...]) -> None:
    """Refuse formats whose packages cannot be imported.

    Raises:
        ConfigError: with the command that installs them.
    """
    for name in _ONNX_PACKAGES if "onnx" in formats else ():
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(
                "E-CONFIG-016",
                f"the format onnx needs a package that is not installed: {error.name or name}",
                where="export.formats",
                todo=f"{_ONNX_INSTALL}, or leave onnx out",
            ) from error


def folder_of(run_uri: str, method: str) -> str:
    """Return where the backbone of a method is exported to."""
    return storage.join(run_uri, "export", method)


def export_network(
    network: Network, facts: Facts, folder_uri: str, *, formats: tuple[str, ...]
) -> list[str]:
    """Write a network in the given formats, each checked, and a model card.

    Args:
        network: in evaluation mode, on the CPU.
        facts: for metadata and card.
        folder_uri: where the files go.
        formats: of the key `export.formats`.

    Returns:
        The names of the files.
    """
    check_formats(formats)
    model, side_px = FeatureModel(network), facts.crop_px
    contents: dict[str, bytes] = {}
    any_size: list[str] = []
    if "safetensors" in formats:
        contents |= _state_dicts(network, facts)
    if "torch-export" in formats:
        content = exported_program(model, side_px=side_px)
        if _check("features.pt2", content, _run_program, network, side_px, folder_uri):
            any_size.append("features.pt2")
        contents["features.pt2"] = content
    if "onnx" in formats:
        content = onnx_program(model, side_px=side_px)
        if _check("features.onnx", content, _run_onnx, network, side_px, folder_uri):
            any_size.append("features.onnx")
        contents["features.onnx"] = content
    contents["README.md"] = model_card(facts, tuple(contents), any_size=any_size).encode()
    for name, content in contents.items():
        storage.write_bytes(storage.join(folder_uri, name), content)
    return list(contents)


def _state_dicts(network: Network, facts: Facts) -> dict[str, bytes]:
    name = facts.architecture
    tensors = {n: t.detach().cpu().contiguous() for n, t in network.backbone.state_dict().items()}
    files = {"backbone.safetensors": _safetensors(tensors, facts.metadata(library_of(name)))}
    if timm_names.differs(name):
        renamed = {n: t.contiguous() for n, t in timm_names.to_timm(name, tensors).items()}
        files["backbone.timm.safetensors"] = _safetensors(renamed, facts.metadata("timm"))
    return files


def _safetensors(tensors: dict[str, Tensor], metadata: str) -> bytes:
    # One entry of metadata only: safetensors writes several in random order.
    return save_tensors(tensors, {"sdclr": metadata})


def _run_program(content: bytes, images: Tensor) -> Tensor:
    program = torch.export.load(io.BytesIO(content))
    with torch.inference_mode():
        features: Tensor = program.module()(images)
    return features


def _run_onnx(content: bytes, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (features,) = session.run(["features"], {"images": images.numpy()})
    return torch.from_numpy(features)


def _check(
    name: str,
    content: bytes,
    run: Callable[[bytes, Tensor], Tensor],
    network: Network,
    side_px: int,
    folder_uri: str,
) -> bool:
    """Refuse a form that gives other features; return whether it takes images of other sizes."""
    for width_px in (side_px, other_width_px(side_px)):
        images = check_images(side_px, width_px=width_px)
        try:
            found = run(content, images)
        except Exception:  # of the form's own library
            if width_px == side_px:
                raise
            return False
        with torch.inference_mode():
            difference = largest_difference(found, network.features(images))
        if not difference <= MAX_DIFFERENCE:
            raise PipelineError(
                "E-BUG-560",
                f"{name} would give other features than the network: they differ by "
                f"{difference:.1e}, {MAX_DIFFERENCE:.0e} is allowed",
                where=folder_uri,
                todo="leave this format out of export.formats, and please report it with run.json",
            )
    return True


def _facts(run: RunContext, method: str, state: TrainState) -> Facts:
    """Return the facts of a checkpoint, with its scores if evaluation.json holds any."""
    config, manifest, step = run.config, run.manifest, int(state.numbers["step"])
    evaluation = Evaluation.find(storage.join(run.run_uri, "evaluation.json"))
    models = () if evaluation is None else evaluation.models
    return Facts(
        architecture=config.model.backbone,
        stem=config.model.stem,
        method=method,
        crop_px=build.crop_px(config, manifest),
        resize_px=build.resize_px(config, manifest),
        seed=config.run.seed,
        config_hash=run.config_hash,
        data_name=source_name(manifest),
        data_hash=manifest.hash,
        pretrain_images=manifest.sets["pretrain"].rows,
        step=step,
        epochs=trained_epochs(config, state),
        versions=provenance.versions(("torch", "torchvision")),
        scores=tuple(s for m in models if (m.name, m.step) == (method, step) for s in m.scores),
        scored_on=None if evaluation is None else evaluation.scored_on,
        alarms=tuple(a.text for a in _alarms(run) if a.method == method and a.level == "alarm"),
    )


def _alarms(run: RunContext) -> tuple[RunAlarm, ...]:
    found = Run.find(storage.join(run.run_uri, "run.json"))
    return () if found is None else found.alarms
