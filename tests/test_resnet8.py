"""The smallest network: its block is torchvision's, and it does not import torchvision."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock as OfTorchvision

from sdclr.resnet8 import BasicBlock

IMPORTED = """
import sys
from sdclr import build_network
import pipeline.train.worker, pipeline.evaluate.stage, pipeline.mine.stage
build_network("resnet8", stem="cifar", head_depth=2, seed=0)
{then}
print("torchvision" in sys.modules)
"""


@pytest.mark.parametrize("stride", [1, 2])
def test_the_block_is_torchvision_s(stride: int) -> None:
    """Names, initial weights, outputs, gradients; another stride is the control."""
    built = []
    for block in (BasicBlock, OfTorchvision):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            shortcut = nn.Conv2d(4, 6, 1, stride=stride, bias=False)
            built.append(block(4, 6, stride, shortcut))
    ours, theirs = built
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for one in built:
        one(x).square().sum().backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.grad is not None and torch.equal(a.grad, b.grad), name
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = BasicBlock(4, 6, 3 - stride, nn.Conv2d(4, 6, 1, stride=3 - stride, bias=False))
    other.load_state_dict(ours.state_dict())
    assert other.eval()(x).shape != ours(x).shape


@pytest.mark.parametrize(
    ("then", "is_imported"),
    [("", False), ("build_network('resnet18', stem='cifar', head_depth=2, seed=0)", True)],
)
def test_only_a_network_of_torchvision_imports_torchvision(then: str, is_imported: bool) -> None:
    """It costs each process of a run almost two seconds."""
    found = subprocess.run(
        [sys.executable, "-c", IMPORTED.format(then=then)], capture_output=True, text=True
    )
    assert found.stdout.split() == [str(is_imported)], found.stderr
