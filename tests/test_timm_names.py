"""timm's own networks load our tensors under timm's names and give the same features."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.timm_names import differs, from_timm, to_timm
from sdclr.backbone import build_backbone

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["convnext_tiny", "resnet18", "resnext50_32x4d"])
def test_timm_gives_the_same_features(name: str) -> None:
    backbone, num_features = build_backbone(name, stem="imagenet", seed=0)
    theirs = timm.create_model(name, num_classes=0)
    theirs.load_state_dict(to_timm(name, backbone.state_dict()), strict=True)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = backbone.eval()(x)
        torch.testing.assert_close(theirs.eval()(x), ours)
        other = timm.create_model(name, num_classes=0).eval()(x)
    assert ours.shape == (2, num_features) and not torch.allclose(other, ours, atol=1e-3)


def test_names_come_back() -> None:
    backbone, _ = build_backbone("convnext_tiny", stem="imagenet", seed=0)
    state = backbone.state_dict()
    back = from_timm("convnext_tiny", to_timm("convnext_tiny", state))
    assert list(back) == list(state)
    assert all(torch.equal(back[n], t) for n, t in state.items())
    assert to_timm("convnext_tiny", state).keys().isdisjoint(state.keys())


def test_what_is_not_known_stays_or_is_refused() -> None:
    extra = {"head.fc.weight": torch.ones(1), "stages.0.blocks.0.odd.weight": torch.ones(1)}
    assert from_timm("convnext_tiny", extra).keys() == extra.keys()
    with pytest.raises(ValueError, match="is no tensor of torchvision's ConvNeXt"):
        to_timm("convnext_tiny", {"layer1.0.conv1.weight": torch.ones(1)})
    assert not differs("resnet50") and differs("convnext_small")
