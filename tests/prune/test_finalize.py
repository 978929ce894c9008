"""Converting takes channels out and changes nothing, whatever the channels hang together with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.prune.networks import CASES, Case, conv, depthwise, with_small_rows
from unbranch.blocks import Compactor
from unbranch.errors import InputError
from unbranch.provenance import replay
from unbranch.prune import finalize, insert_compactors, read_graph
from unbranch.prune.finalization import kept_channels, with_zero_rows
from unbranch.prune.select import Limits


def gap(a: nn.Module, b: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        ours, theirs = a.eval()(x), b.eval()(x)
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.sweep(6)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_function_is_that_of_the_network_with_small_rows_zero(case: Case) -> None:
    x = case.images()[:1]
    network = insert_compactors(case.network(), x, layers=case.layers)
    assert gap(network, case.network(), x) < 1e-12
    graph = read_graph(network, x)
    with_small_rows(network, graph)
    plain = finalize(network, x, multiple=1)
    keep = kept_channels(network, graph, 1e-5, Limits())
    assert sum(int((~kept).sum()) for kept in keep) > 0
    others = torch.randn(3, *x.shape[1:], dtype=x.dtype)
    assert gap(plain, with_zero_rows(network, graph, keep), others) < 1e-10
    assert not any(isinstance(module, Compactor) for module in plain.modules())
    pruning = ub.report(plain, "prune")
    assert pruning.after.params == sum(p.numel() for p in plain.parameters())
    assert pruning.macs == (pruning.before.macs, pruning.after.macs)
    assert pruning.zero_but_kept or pruning.macs[1] < pruning.macs[0]


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", [
    "grouped", "joined", "squeezed", "flattened", "halves added", "depthwise, padded", "depthwise block, padded",
    "depthwise, squeezed", "depthwise, squeezed, padded", "mobilenetv3",
])  # fmt: skip
def test_all_but_the_kept_channels_are_gone(name: str) -> None:
    case, x = CASES[name], CASES[name].images()
    network = insert_compactors(case.network(), x, layers="all")
    graph = read_graph(network, x)
    plain = finalize(with_small_rows(network, graph), x, multiple=1)
    assert not ub.report(plain).zero_but_kept
    keep = kept_channels(network, graph, 1e-5, Limits())
    expected: Counter[str] = Counter()
    for unit, kept in zip(graph.units, keep, strict=True):
        expected[unit.layer] += int(kept.sum()) * unit.channels.shape[1]
    assert {path: ub.report(plain).widths[path][1] for path in expected} == expected


@torch.no_grad()
def test_what_a_depthwise_convolution_makes_of_nothing_goes_into_the_next_bias() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for act in (nn.ReLU, nn.Hardswish):
        network = insert_compactors(Case(lambda act=act: depthwise(act)).network(), x, include="0.0")
        network[0][0].compactor.conv.weight[:3] = 0
        network[1][1].bias.fill_(2.0)
        plain = finalize(network, x, multiple=1)
        assert gap(plain, network, x) < 1e-10
        assert (plain[0][0].out_channels, plain[1][0].groups, plain[2][0].in_channels) == (5, 5, 5)


@torch.no_grad()
def test_what_isn_t_zero_stays_where_the_reader_pads_with_zeros() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    network = ub.expand(depthwise(last=3).double(), "compactor", "0.0")  # as long as the norm's shift is 0, all can go
    network[0][0].compactor.conv.weight[:3] = 0
    assert finalize(network, x, multiple=1)[0][0].out_channels == 5
    network[1][1].bias[:2] = 2.0
    plain = finalize(network, x, multiple=1)
    assert gap(plain, network, x) < 1e-10
    assert ub.report(plain).zero_but_kept == {"0.0": 2}
    assert plain[0][0].out_channels == 7
    assert ["0.0", "8", "7", "2"] in [line.split() for line in str(ub.report(plain)).splitlines()]


@torch.no_grad()
def test_a_reader_without_bias_gets_one() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    unpadded = nn.Sequential(conv(3, 8, act=nn.Sigmoid), nn.Conv2d(8, 4, 3, bias=False))
    network = insert_compactors(Case(lambda: unpadded).network(), x)
    network[0][0].compactor.conv.weight[:3] = 0
    plain = finalize(network, x, multiple=1)
    assert plain[0][0].out_channels == 5
    assert plain[1].bias is not None
    assert gap(plain, network, x) < 1e-10


def test_multiples_minimum_masks_and_the_last_row() -> None:
    x = torch.randn(1, 3, 16, 16)
    network = insert_compactors(ub.create_model("resnet8_cifar", num_classes=10), x)
    compactor = network.stages[1][0].conv1.conv.compactor
    first = "stages.1.0.conv1.conv"
    with torch.no_grad():
        compactor.conv.weight[:29] *= 1e-9
        compactor.mask[:30] = 0
    widths = {
        "one": finalize(network, x, multiple=1),
        "eight": finalize(network, x),
        "minimum": finalize(network, x, multiple=1, minimum=5),
        "masked": finalize(network, x, multiple=1, masked=True),
    }
    assert {k: ub.report(net).widths[first][1] for k, net in widths.items()} == {
        "one": 3, "eight": 8, "minimum": 5, "masked": 2,
    }  # fmt: skip
    with torch.no_grad():
        compactor.conv.weight.zero_()
        compactor.conv.weight[7, 7] = 1e-7
    plain = finalize(network, x, multiple=1)
    assert ub.report(plain).widths[first] == (32, 1)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", ["resnet8_cifar", "timm:regnety_002", "torchvision:mobilenet_v2", "repvgg_a0"])
def test_pruned_networks_come_back_from_files_without_any_code(name: str, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 32, 32)
    network = insert_compactors(ub.create_model(name, num_classes=10), x)
    plain = finalize(with_small_rows(network, read_graph(network, x)), x, multiple=1).eval()
    ub.save(network, tmp_path / "compactors.safetensors")
    ub.save(plain, tmp_path / "pruned.safetensors")
    again, training = ub.load(tmp_path / "pruned.safetensors"), ub.load(tmp_path / "compactors.safetensors")
    assert torch.equal(again(x), plain(x))
    assert torch.equal(training(x), network.eval()(x))
    assert sum(p.numel() for p in again.parameters()) == ub.report(plain).after.params


@pytest.mark.parametrize(
    "damage", [{"layers": 3}, {"layers": {"nothing": {}}}, {"shapes": [99, 99, 3, 3]}, {"number": 10**9}, {"name": "x"}]
)
def test_a_damaged_record_of_pruning_is_refused(damage: dict[str, object]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3))
    layer = {
        "shapes": {damage.get("name", "weight"): damage.get("shapes", [4, 3, 3, 3]), "bias": [4]},
        "numbers": {"out_channels": damage.get("number", 4)},
    }
    with pytest.raises(InputError, match="record of pruning"):
        replay(network, ({"kind": "prune", "layers": damage.get("layers", {"0": layer})},))


def test_a_network_without_compactors_is_told_so() -> None:
    with pytest.raises(InputError, match=r"has no compactors: unbranch\.prune\.insert_compactors"):
        finalize(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 8, 8))


def test_the_original_isn_t_changed() -> None:
    x = torch.randn(1, 3, 16, 16)
    source = ub.create_model("resnet8_cifar", num_classes=10)
    before = {key: value.clone() for key, value in source.state_dict().items()}
    network = insert_compactors(source, x)
    with_small_rows(network, read_graph(network, x))
    state = {key: value.clone() for key, value in network.state_dict().items()}
    assert finalize(network, x).training == network.training
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in before.items())


def test_kernels_keep_their_memory_format() -> None:
    x = torch.randn(1, 3, 16, 16)
    network = ub.create_model("resnet8_cifar", num_classes=10).to(memory_format=torch.channels_last)
    network = insert_compactors(network, x)
    plain = finalize(with_small_rows(network, read_graph(network, x)), x, multiple=1)
    kernels = [m.weight for m in plain.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
