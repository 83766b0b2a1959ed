"""Python code that loads an exported backbone into its library's own network."""

from __future__ import annotations

from pipeline.export.facts import Facts
from pipeline.model.libraries import TIMM, timm_arguments

_CLASSIFIERS = {
    "alexnet": "classifier[6]", "vgg": "classifier[6]", "convnext": "classifier[2]",
    "densenet": "classifier", "efficientnet": "classifier[1]", "mnasnet": "classifier[1]",
    "mobilenet_v2": "classifier[1]", "mobilenet_v3": "classifier[3]",
    "squeezenet": "classifier[1]", "maxvit": "classifier[5]", "swin": "head", "vit": "heads.head",
}  # fmt: skip
_PIXELS = {"vit": "image_size={px}", "maxvit": "input_size=({px}, {px})"}
_AUXILIARY = "aux_logits=False, transform_input=True, init_weights=True"


def library_of(architecture: str) -> str:
    """Return the library that has an architecture and names its tensors."""
    return TIMM if architecture.startswith(f"{TIMM}/") else "torchvision"


def classifier_of(name: str) -> str:
    """Return the attribute of the classifier in a network of torchvision."""
    return next((path for family, path in _CLASSIFIERS.items() if name.startswith(family)), "fc")


def loading_code(facts: Facts) -> str:
    """Write code that loads backbone.safetensors into a plain network; empty where there is none.

    Args:
        facts: of the export, whose architecture, stem and side of the input count.
    """
    name, px = facts.architecture, facts.crop_px
    if name == "resnet8":
        return ""  # torchvision has none
    library = library_of(name)
    lines = [f"import torch, {library}", "from safetensors.torch import load_file"]
    if library == TIMM:
        plain = name.partition("/")[2]
        more = "".join(f", {k}={v}" for k, v in timm_arguments(plain, px).items())
        lines.append(f'model = timm.create_model("{plain}", num_classes=0{more})')
    else:
        lines.append(f"model = torchvision.models.{name}({_arguments(name, px)})")
        lines.append(f"model.{classifier_of(name)} = torch.nn.Identity()")
    if facts.stem == "cifar":
        conv, pool = ("conv1", "maxpool")
        if name.startswith("densenet"):
            conv, pool = "features.conv0", "features.pool0"
        width = f"model.{conv}.out_channels"
        lines.append(f"model.{conv} = torch.nn.Conv2d(3, {width}, 3, padding=1, bias=False)")
        lines.append(f"model.{pool} = torch.nn.Identity()")
    lines.append('weights = load_file("backbone.safetensors")')
    if name.startswith("mnasnet"):  # which asks for a version that safetensors cannot keep
        lines[1:1] = ["from collections import OrderedDict"]
        lines.append("weights = OrderedDict(weights)")
        lines.append('weights._metadata = {"": {"version": 2}}')
    lines.append("model.load_state_dict(weights)")
    lines.append("model.eval()  # input: (images - input_mean) / input_std")
    return "\n".join(lines) + "\n"


def _arguments(name: str, px: int) -> str:
    if name.startswith(("googlenet", "inception")):
        return _AUXILIARY
    family = next((family for family in _PIXELS if name.startswith(f"{family}_")), None)
    return _PIXELS[family].format(px=px) if family else ""
