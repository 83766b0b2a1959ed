"""The twin against the published scheme written out on two networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sdclr.backbone import build_backbone
from sdclr.loss import nt_xent
from sdclr.prune import PruneRule, StarvedLayerError, kept_fractions
from sdclr.twin import SimCLR, Twin, build_network, projection_head

RULE = PruneRule(prune_ratio=0.5)


def make_twin(
    backbone: str = "resnet8", stem: str = "cifar", dtype: torch.dtype = torch.float64
) -> Twin:
    twin = Twin(build_network(backbone, stem=stem, head_depth=2, embedding_dim=16, seed=0)).to(
        dtype
    )
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # both BatchNorm sets away from their equal start
        for norm in (*twin.network.modules(), *twin.pruned_norms.modules()):
            if isinstance(norm, _BatchNorm):
                norm.weight.add_(0.2 * torch.randn(norm.weight.shape, generator=g, dtype=dtype))
                norm.bias.add_(0.2 * torch.randn(norm.bias.shape, generator=g, dtype=dtype))
    twin.refresh_masks(RULE)
    return twin.train()


def two_views(dtype: torch.dtype = torch.float64, px: int = 16) -> Tensor:
    return torch.rand(2, 6, 3, px, px, generator=torch.Generator().manual_seed(2), dtype=dtype)


def published_step(
    twin: Twin, views: Tensor
) -> tuple[Tensor, dict[str, Tensor], nn.Module, nn.Module]:
    """The authors' scheme on two separate networks; gradients under the twin's parameter names."""
    dense, pruned = copy.deepcopy(twin.network), copy.deepcopy(twin.network)
    masks = twin.mask_by_weight()
    norms = {name.replace("/", "."): norm for name, norm in twin.pruned_norms.items()}
    with torch.no_grad():
        for name, parameter in pruned.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    for name, norm in norms.items():
        pruned.get_submodule(name).load_state_dict(norm.state_dict())
    without_grad = copy.deepcopy(pruned)(views[1]).detach()
    f1 = dense(views[0])
    nt_xent(f1, without_grad, temperature=0.2).backward()
    f2 = pruned(views[1])
    loss = nt_xent(f1.detach(), f2, temperature=0.2)
    loss.backward()

    grads = {}
    for name, parameter in dense.named_parameters():
        other = pruned.get_parameter(name).grad
        assert parameter.grad is not None and other is not None
        owner = name.rpartition(".")[0]
        if owner in norms:
            grads[f"network.{name}"] = parameter.grad
            grads[f"pruned_norms.{owner.replace('.', '/')}.{name.rpartition('.')[2]}"] = other
        else:
            grads[f"network.{name}"] = parameter.grad + other * masks.get(name, 1)
    return loss.detach(), grads, dense, pruned


def joint_step(twin: Twin, views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = nt_xent(*twin(views[0], views[1]), temperature=0.2)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    scale = max(e.norm().item() for e in expected.values())
    return max((found[n] - expected[n]).norm().item() for n in expected) / scale


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_joint_step_equals_the_published_scheme(dtype: torch.dtype, tolerance: float) -> None:
    twin, views = make_twin(dtype=dtype), two_views(dtype)
    expected_loss, expected, _, _ = published_step(twin, views)
    loss, grads = joint_step(twin, views)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=tolerance)
    assert relative_error(grads, expected) < tolerance


def test_the_comparison_can_fail() -> None:
    twin, views = make_twin(), two_views()
    _, expected, _, _ = published_step(twin, views)
    with torch.no_grad():  # no pruning at all
        for mask in twin.masks.buffers():
            mask.fill_(True)
    _, grads = joint_step(twin, views)
    assert relative_error(grads, expected) > 1e-3


def test_each_batchnorm_set_sees_its_branch_once() -> None:
    twin, views = make_twin(), two_views()
    _, _, dense, pruned = published_step(twin, views)
    twin(views[0], views[1])
    for name, norm in twin.pruned_norms.items():
        dotted = name.replace("/", ".")
        ours = twin.network.get_submodule(dotted)
        for mine, theirs in ((ours, dense), (norm, pruned)):
            reference = theirs.get_submodule(dotted)
            torch.testing.assert_close(mine.running_mean, reference.running_mean)
            torch.testing.assert_close(mine.running_var, reference.running_var)
            assert mine.num_batches_tracked.item() == 1
        assert not torch.allclose(ours.running_mean, norm.running_mean)


def test_evaluation_uses_the_dense_branch_and_leaves_no_trace() -> None:
    twin, views = make_twin(), two_views()
    twin(views[0], views[1])
    before = {n: t.clone() for n, t in twin.state_dict().items()}
    twin.eval()
    plain = copy.deepcopy(twin.network)
    torch.testing.assert_close(twin.network.features(views[0]), plain.features(views[0]))
    assert not torch.allclose(twin.pruned(views[0]), twin.network(views[0]))
    for name, tensor in twin.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_without_pruning_and_with_equal_norms_both_branches_are_one() -> None:
    twin = Twin(build_network("resnet8", stem="cifar", head_depth=3, seed=0)).train()
    f1, f2 = twin(*[two_views(torch.float32)[0]] * 2)
    assert torch.equal(f1, f2)
    twin.refresh_masks(RULE)
    f1, f2 = twin(*[two_views(torch.float32)[0]] * 2)
    assert not torch.allclose(f1, f2)


def test_masked_weights_learn_from_the_dense_branch_only() -> None:
    twin, views = make_twin(), two_views()
    twin.pruned(views[1]).square().sum().backward()
    for name, mask in twin.mask_by_weight().items():
        grad = twin.network.get_parameter(name).grad
        assert grad is not None and not grad[~mask].any() and grad[mask].any(), name


def test_masks_are_buffers_recomputed_from_live_weights() -> None:
    twin = make_twin()
    before = {n: m.clone() for n, m in twin.mask_by_weight().items()}
    with torch.no_grad():
        for name, weight in twin.network.named_parameters():
            if name in before:
                weight.copy_(weight.flip(0))
    kept = twin.refresh_masks(RULE)
    after = twin.mask_by_weight()
    for name, mask in before.items():
        assert torch.equal(after[name], mask.flip(0)), name
    assert kept == kept_fractions(after)
    assert {f"masks.{n.replace('.', '/')}" for n in before} <= twin.state_dict().keys()


def test_a_starved_refresh_keeps_the_old_masks() -> None:
    twin = make_twin()
    before = {n: m.clone() for n, m in twin.mask_by_weight().items()}
    with pytest.raises(StarvedLayerError):
        twin.refresh_masks(PruneRule(prune_ratio=1.0))
    assert all(torch.equal(m, before[n]) for n, m in twin.mask_by_weight().items())


@pytest.mark.parametrize(
    ("backbone", "stem", "px"),
    [("resnet18", "cifar", 8), ("resnet18", "imagenet", 32), ("convnext_tiny", "imagenet", 32)],
)
def test_any_backbone_is_a_twin_unmodified(backbone: str, stem: str, px: int) -> None:
    network = build_network(backbone, stem=stem, head_depth=2, seed=0)
    keys = list(network.backbone.state_dict())
    twin = Twin(network).train()
    twin.refresh_masks(PruneRule(prune_ratio=0.3))
    loss = nt_xent(*twin(*two_views(torch.float32, px)), temperature=0.2)
    loss.backward()
    assert torch.isfinite(loss) and list(network.backbone.state_dict()) == keys
    unused = [n for n, p in twin.named_parameters() if p.grad is None]
    assert unused == []
    kinds = {type(m) for n, m in twin.pruned_norms.items() if "backbone" in n}
    expected = nn.BatchNorm2d if backbone.startswith("resnet") else nn.LayerNorm
    assert kinds and all(issubclass(kind, expected) for kind in kinds)


def test_simclr_puts_both_views_through_one_batch() -> None:
    network = build_network("resnet8", stem="cifar", head_depth=2, seed=0).train()
    views = two_views(torch.float32)
    expected = copy.deepcopy(network)(views.flatten(0, 1))
    torch.testing.assert_close(torch.cat(SimCLR(network)(views[0], views[1])), expected)
    separate = torch.cat([copy.deepcopy(network)(v) for v in views])
    assert not torch.allclose(separate, expected)


@pytest.mark.parametrize(("depth", "num_linear"), [(2, 2), (3, 3)])
def test_projection_head_as_published(depth: int, num_linear: int) -> None:
    head = projection_head(64, 128, depth=depth)
    linears = [m for m in head if isinstance(m, nn.Linear)]
    assert len(linears) == num_linear
    assert [m.bias is not None for m in linears] == [True] * (depth - 1) + [False]
    assert isinstance(head[-1], nn.BatchNorm1d) and head[-1].affine
    with pytest.raises(ValueError, match="2 or 3"):
        projection_head(64, 128, depth=4)


def test_a_bias_in_front_of_a_norm_changes_nothing() -> None:
    head = projection_head(8, 4, depth=3).double().train()
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    second, last = head[3], head[7]
    before = head(x)
    before.square().mul(torch.arange(4) + 1.0).sum().backward()
    assert second.bias.grad.abs().max() < 1e-9 < second.weight.grad.abs().max()
    with torch.no_grad():
        second.bias += 3.0
        torch.testing.assert_close(head(x), before)
        last.bias += 3.0  # the control: behind the last norm it counts
        assert not torch.allclose(head(x), before)


def test_seed_decides_the_weights_and_the_process_generator_is_untouched() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    a, b, c = (build_network("resnet8", stem="cifar", head_depth=2, seed=s) for s in (0, 0, 1))
    assert torch.rand(1) == expected
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.backbone.conv1.weight, c.backbone.conv1.weight)
    deeper = build_network("resnet8", stem="cifar", head_depth=3, seed=0)
    assert torch.equal(a.backbone.conv1.weight, deeper.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("name", "stem", "message"),
    [("resnet19", "cifar", "unknown backbone 'resnet19'"),
     ("mobilenet_v3_small", "cifar", "no stem"), ("resnet8", "tiny", "no stem"),
     ("other/resnet18", "imagenet", "unknown library 'other'")],
)  # fmt: skip
def test_unknown_backbones_are_refused(name: str, stem: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(name, stem=stem, seed=0)
