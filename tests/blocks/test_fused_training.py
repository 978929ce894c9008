"""Merged training is the training it stands for: outputs, gradients, statistics, and everything around them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.blocks.rows import CONVOLUTIONS, ROWS, Row
from tests.blocks.test_contract import assert_equal
from unbranch.blocks import DBB, BranchedConv, Mixed, MobileOne, RepVGG
from unbranch.blocks.fused_training import branches
from unbranch.blocks.fused_training.moments import Moments, fold_norm, moments
from unbranch.convert.statistics import randomise_statistics

SWEEP = [
    pytest.param(row, arguments, id=f"{name}: {label}")
    for name, row in CONVOLUTIONS.items()
    for label, arguments in {"usual": {}, **row.sweep}.items()
]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge on the smallest maps, too."""
    monkeypatch.setattr(branches, "_MIN_POSITIONS", 0)
    monkeypatch.setattr(branches, "_MIN_POSITIONS_PER_TAP", 0)


def pair(block: nn.Module, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """A block in training with statistics of its own, as it stands and merged."""
    block = block.to(dtype).train()
    randomise_statistics(block)
    return block, ub.fuse_branches_in_training(copy.deepcopy(block))


def trained(block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs of two steps, the gradients of the second, and the statistics behind both."""
    x = x.clone().requires_grad_()
    outputs = {"first": block(x), "output": block(x)}
    generator = torch.Generator().manual_seed(2)
    y = outputs["output"]
    (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum().backward()
    gradients = {f"{name}.grad": p.grad for name, p in block.named_parameters()}
    assert all(g is not None for g in gradients.values())
    return outputs | gradients | dict(block.named_buffers()) | {"input.grad": x.grad}  # type: ignore[return-value]


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        error = (ours[name].double() - wanted.double()).abs().max().item()
        assert error <= tolerance * max(1.0, wanted.double().abs().max().item()), f"{name} differs by {error:.1e}"


@pytest.mark.sweep(2)
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("row", "arguments"), SWEEP)
def test_outputs_gradients_and_statistics_are_those_of_separate_branches(row: Row, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    block, cheap = pair(row.make(**row.arguments | arguments))
    x = torch.randn(row.shape, dtype=torch.float64)
    assert_same(trained(cheap, x), trained(block, x))


def test_branches_run_as_they_stand_where_the_map_is_too_small_to_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(branches, "moments", lambda x, groups: asked.append(x.shape[-1]) or moments(x, groups))
    block = ub.fuse_branches_in_training(DBB(32, 32, 3, padding=1))
    for side in (4, 8, 24):  # 32, 128 and 1152 positions; 8 to a channel are enough for the average
        block(torch.randn(2, 32, side, side))
    assert asked == [24]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", [DBB, RepVGG], ids=lambda kind: kind.__name__)
def test_fewer_convolutions_run_and_less_is_kept(kind: type[BranchedConv]) -> None:
    block, cheap = pair(kind(8, 8, 3, padding=1))
    x = torch.randn(4, 8, 12, 12, dtype=torch.float64, requires_grad=True)
    kept = []
    for one in (block, cheap):
        storages: dict[int, int] = {}

        def note(t: Tensor, seen: dict[int, int] = storages) -> Tensor:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            y = one(x)  # noqa: F841  (alive, so that no storage is used twice)
        kept.append(sum(storages.values()))
    assert kept[1] < 0.75 * kept[0]


@pytest.mark.usefixtures("always")
def test_branches_of_ones_own_run_beside_those_that_merge() -> None:
    def bottleneck(spec: ub.blocks.ConvSpec) -> nn.Module:
        down = nn.Conv2d(spec.in_channels, 4, spec.kernel, spec.stride, spec.padding, bias=False)
        return nn.Sequential(down, nn.Conv2d(4, spec.out_channels, 1, bias=False), spec.norm(spec.out_channels))

    def pooled(spec: ub.blocks.ConvSpec) -> nn.Module:  # with plain numbers where ours have tuples
        return nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.BatchNorm2d(spec.out_channels))

    def biased(spec: ub.blocks.ConvSpec) -> nn.Module:
        return nn.Sequential(nn.Conv2d(spec.in_channels, spec.out_channels, 1), nn.BatchNorm2d(spec.out_channels))

    branches = {"whole": ub.blocks.ConvSpec.conv_bn, "low_rank": bottleneck, "pooled": pooled, "biased": biased,
                "point": ub.blocks.BRANCHES["1x1"]}  # fmt: skip
    block, cheap = pair(Mixed(8, 8, 3, padding=1, branches=branches))
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    assert_same(trained(cheap, x), trained(block, x))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("change", ["hook", "frozen", "no momentum", "drop path", "bf16 outside"])
def test_what_merging_cannot_do_stays_as_it_was(change: str) -> None:
    torch.manual_seed(0)
    block: nn.Module = DBB(8, 8, 3, padding=1)
    if change == "drop path":
        block = RepVGG(8, 8, 3, padding=1, drop_path=0.5)
    block, cheap = pair(block)
    calls: list[str] = []
    for one in (block, cheap):
        point: Any = one.get_submodule("conv_1x1")
        if change == "hook":
            point.bn.register_forward_hook(lambda *_: calls.append("called"))
        elif change == "frozen":
            point.bn.eval()
        elif change == "no momentum":
            point.bn.momentum = None
    x = torch.randn(4, 8, 9, 7, dtype=torch.float64)
    results = []
    for one in (cheap, block):
        torch.manual_seed(3)
        results.append(trained(one, x))
    assert_same(*results)
    assert len(calls) == (4 if change == "hook" else 0)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", [DBB, RepVGG, MobileOne], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
def test_float32_stays_as_close_to_float64_as_separate_branches_do(
    kind: type[BranchedConv], groups: int, form: torch.memory_format
) -> None:
    torch.manual_seed(0)
    exact, _ = pair(kind(16, 16, 3, padding=1, groups=groups))
    block, cheap = pair(copy.deepcopy(exact), torch.float32)
    x = 3 + torch.randn(8, 16, 10, 10).to(memory_format=form)  # far from zero, where variances cancel
    wanted = trained(exact, x.double())
    ours, theirs = trained(cheap.to(memory_format=form), x), trained(block.to(memory_format=form), x)
    for name in ("output", "input.grad", "conv_kxk.conv.weight.grad" if kind is not MobileOne else "output"):
        scale = wanted[name].abs().max()
        errors = [((one[name].double() - wanted[name]).abs().max() / scale).item() for one in (ours, theirs)]
        assert errors[0] <= max(20 * errors[1], 1e-5), name


@pytest.mark.parametrize("kind", [DBB, RepVGG], ids=lambda kind: kind.__name__)
def test_autocast_gives_what_separate_branches_give(kind: type[BranchedConv], always: None) -> None:
    block, cheap = pair(kind(16, 16, 3, padding=1), torch.float32)
    x = torch.randn(8, 16, 10, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = cheap(x), block(x)
    assert_equal(ours, theirs, 0.05)
    ours.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in cheap.parameters())


def test_moments_have_exact_gradients_of_both_orders() -> None:
    torch.manual_seed(0)
    for shape, groups in (((3, 4, 5), 2), ((2, 4, 3, 2), 1), ((2, 3, 2, 2, 2), 3)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, g=groups: tuple(moments(x, g)), (x,))
        assert torch.autograd.gradgradcheck(lambda x, g=groups: tuple(moments(x, g)), (x,))


def test_folded_norm_has_exact_gradients_of_both_orders() -> None:
    torch.manual_seed(0)
    x = moments(torch.randn(4, 4, 3, 3, dtype=torch.float64), 2)
    for affine in (True, False):
        norm = nn.BatchNorm2d(6, affine=affine, dtype=torch.float64)

        def behind(weight: Tensor, mean: Tensor, spread: Tensor, *own: Tensor) -> tuple[Tensor, Tensor]:
            pair = dict(zip(("weight", "bias"), own, strict=False))
            holder = copy.copy(norm)  # noqa: B023
            holder._parameters = {**holder._parameters, **pair}  # type: ignore[assignment]
            return fold_norm(holder, weight, Moments(mean, spread @ spread.mT), 36)

        weight = torch.randn(6, 2, 1, 1, dtype=torch.float64, requires_grad=True)
        own = [torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2)] if affine else []
        inputs = (weight, *(t.clone().requires_grad_() for t in x), *own)
        assert torch.autograd.gradcheck(behind, inputs)
        assert torch.autograd.gradgradcheck(behind, inputs)


def test_constant_input_gives_no_negative_variance() -> None:
    _, cheap = pair(RepVGG(16, 16, 3, padding=1), torch.float32)
    x = torch.full((16, 16, 9, 9), 1000.0) + torch.zeros(16, 1, 1, 1).normal_()
    assert cheap(x).isfinite().all()


def test_setting_changes_no_key_and_survives_copies_and_is_taken_back(tmp_path: Path) -> None:
    network = ub.create_model("resnet18", num_classes=3, block="dbb")
    keys = list(network.state_dict())
    assert ub.fuse_branches_in_training(network) is network
    once = [m.fused_in_training for m in network.modules() if isinstance(m, BranchedConv)]
    again = [
        m.fused_in_training for m in ub.fuse_branches_in_training(network).modules() if isinstance(m, BranchedConv)
    ]
    assert once == again == [True] * len(once)
    assert list(network.state_dict()) == keys
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert all(m.fused_in_training for m in other.modules() if isinstance(m, BranchedConv))
    ub.save(network, tmp_path / "net.safetensors")
    loaded = ub.load(tmp_path / "net.safetensors")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in network.state_dict().items())
    ub.fuse_branches_in_training(network, False)
    assert not any(m.fused_in_training for m in network.modules() if isinstance(m, BranchedConv))


def test_evaluation_and_collapse_do_not_see_the_setting() -> None:
    row = ROWS["DBB"]
    block, cheap = pair(row.make(**row.arguments))
    x = torch.randn(row.shape, dtype=torch.float64)
    assert torch.equal(cheap.eval()(x), block.eval()(x))
    plain, other = ub.collapse(block), ub.collapse(cheap)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert torch.equal(ub.equivalent_kernel(block).kernel, ub.equivalent_kernel(cheap.train()).kernel)


def test_network_with_merged_blocks_is_expanded_further() -> None:
    network = nn.Sequential(DBB(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    wide = ub.expand(ub.fuse_branches_in_training(network), "acb")
    assert [place.path for place in ub.report(wide).replaced] == ["2"]
    assert ub.report(wide).replaced[0].norm == "3"


def test_network_without_blocks_is_an_input_error() -> None:
    with pytest.raises(ub.InputError, match="`model` must have blocks with branches, got a Conv2d"):
        ub.fuse_branches_in_training(nn.Conv2d(3, 3, 3))


def test_old_name_warns_and_takes_the_old_argument() -> None:
    block = RepVGG(3, 3)
    for way, enabled in (("merged", True), (None, False)):
        with pytest.warns(DeprecationWarning, match="use `unbranch.fuse_branches_in_training`"):
            assert ub.train_cheaper(block, way).fused_in_training is enabled
    for way, words in (("stack", "must be 'merged' or None, got 'stack'"), ("online", "make them with online=True")):
        with pytest.warns(DeprecationWarning), pytest.raises(ub.InputError, match=words):  # noqa: PT030
            ub.train_cheaper(block, way)
