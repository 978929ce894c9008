"""Each network has the parameters of the published one, by name and shape, and its multiply-accumulates.

Reads every manifest under the folder; everything runs on the meta device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import unbranch as ub
from tests.conformance.networks import FORMS, Network, json_in, manifests, narrowed, network_of, shapes_in
from tests.conformance.official import FOLDER
from unbranch.models.registry import MODELS
from unbranch.weights import to_official
from unbranch.weights.layouts import layouts_of, renamed

needs_manifests = pytest.mark.skipif(not manifests(), reason=f"no manifests in {FOLDER}: set UNBRANCH_OFFICIAL")


def with_form(*forms: str) -> pytest.MarkDecorator:
    """Only those manifests that have one of these forms with parameters."""
    found = {name: path for name, path in manifests().items() if any(json_in(path).get(form) for form in forms)}
    return pytest.mark.parametrize("path", [pytest.param(path, id=name) for name, path in found.items()])


def opened(path: Any, base: bool = False) -> tuple[dict[str, Any], Network]:
    manifest = json_in(path)
    forms = [shapes for form in FORMS if (shapes := shapes_in(manifest, form))]
    network = narrowed(network_of(manifest["model"], forms[0]), forms[0])
    if base:
        options = {key: value for key, value in network.options.items() if key != "block"}
        network = replace(network, options=options)
    return manifest, network


def input_of(manifest: dict[str, Any], network: Network) -> list[int]:
    """Channels, height and width; the network's own where the manifest doesn't say."""
    return list(manifest.get("input") or MODELS[network.name].input_size)


def made(network: Network, in_channels: int = 3) -> nn.Module:
    with torch.device("meta"):
        return network.make(in_channels=in_channels)


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def assert_same(ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(theirs.keys() - ours.keys()), sorted(ours.keys() - theirs.keys())
    assert not missing, f"{len(missing)} published names have no counterpart: {missing[:5]}"
    assert not extra, f"{len(extra)} of our names aren't published: {extra[:5]}"
    wrong = {key: (ours[key], shape) for key, shape in theirs.items() if ours[key] != shape}
    assert not wrong, f"of another shape than published: {wrong}"


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def kernels(network: nn.Module) -> int:
    """Numbers in convolutions and matrices, which merging norms doesn't touch."""
    return sum(p.numel() for p in network.parameters() if p.dim() > 1)


def macs(run: Any, size: list[int]) -> int:
    with FlopCounterMode(display=False) as counter:
        run(torch.empty(1, *size, device="meta"))
    return counter.get_total_flops() // 2


def published_macs(manifest: dict[str, Any], form: str) -> dict[int, int]:
    """By the side of the image, 0 for that of the manifest's own input."""
    prefix, found = f"macs_{form}", {}
    for key, value in manifest.items():
        if key == prefix:
            found[0] = value
        elif key.startswith(f"{prefix}_") and key.removeprefix(f"{prefix}_").isdigit():
            found[int(key.removeprefix(f"{prefix}_"))] = value
    return found


def assert_counts(ours: nn.Module, network: Network, manifest: dict[str, Any], form: str) -> None:
    """Parameters and multiply-accumulates, as far as they are given."""
    size = input_of(manifest, network)
    assert count(ours) == manifest.get(f"params_{form}", count(ours))
    for side, published in published_macs(manifest, form).items():
        assert macs(network.run(ours), [size[0], side, side] if side else size) == published


@pytest.mark.sweep(8)
@needs_manifests
@with_form("train")
def test_training_form_has_the_published_parameters_and_cost(path: Any) -> None:
    manifest, network = opened(path)
    ours = made(network, input_of(manifest, network)[0])
    assert_same(shapes(to_official(ours, network.layout)), shapes_in(manifest, "train"))
    assert_counts(ours, network, manifest, "train")


@pytest.mark.sweep(6)
@needs_manifests
@with_form("base")
def test_plain_form_has_the_published_parameters_and_cost(path: Any) -> None:
    manifest, network = opened(path, base=True)
    ours = made(network, input_of(manifest, network)[0])
    assert_same(shapes(to_official(ours, network.layout)), shapes_in(manifest, "base"))
    assert_counts(ours, network, manifest, "base")


@pytest.mark.sweep(8)
@needs_manifests
@with_form("deploy")
def test_collapsed_form_has_the_published_parameters_and_cost(path: Any) -> None:
    """Kernels and cost are equal; norms that the published conversion leaves may be merged, too."""
    manifest, network = opened(path)
    plain = ub.collapse(made(network, input_of(manifest, network)[0]))
    deploy = shapes_in(manifest, "deploy")
    assert_same(shapes(to_official(plain, network.layout)), deploy)
    assert count(plain) <= manifest.get("params_deploy", count(plain))
    assert kernels(plain) == sum(torch.Size(shape).numel() for shape in deploy.values() if len(shape) > 1)
    assert not len(getattr(plain, "auxiliary", ()))
    less = {key: value for key, value in manifest.items() if key != "params_deploy"}
    assert_counts(plain, network, less, "deploy")


@needs_manifests
@with_form("deploy")
def test_every_name_of_the_deploy_form_is_known(path: Any) -> None:
    manifest, network = opened(path)
    layouts = layouts_of(network.name, network.options.get("block"))
    tables = [layout.table for layout in layouts]
    deploy = shapes_in(manifest, "deploy")
    assert any(all(renamed(table, key) is not None for key in deploy) for table in tables)


PRUNED = "pruned_deps_from_official_log"


@pytest.mark.parametrize("name", [name for name, path in manifests().items() if PRUNED in json_in(path)])
def test_network_of_pruned_widths_has_the_published_parameters_and_cost(name: str) -> None:
    manifest, network = opened(manifests()[name], base=True)
    pruned = ub.collapse(made(replace(network, options={**network.options, "pruned_widths": manifest[PRUNED]})))
    assert count(pruned) == manifest["params_pruned_log"]
    assert macs(pruned, manifest["input"]) == manifest["macs_pruned_log"]


OTHERS = [
    ("ACNet-src20", 100, "stage3.block2.conv2.ver_conv.weight", (64, 64, 3, 1)),
    ("ACNet-srh32", 100, "stage3.block4.conv1.acb.square_conv.weight", (64, 64, 3, 3)),
    ("ACNet-vh", 100, "stem.conv13.acb.hor_bn.weight", (512,)),
    ("ACNet-cfqkbnh", 100, "conv3.acb.ver_conv.weight", (64, 32, 5, 1)),
    ("ACNet-wrnh28plain", 100, "stage2.block4.conv2.acb.square_conv.weight", (256, 256, 3, 3)),
    ("ResRep-sres101", 1000, "stage3.block22.conv2.compactor.pwc.weight", (256, 256, 1, 1)),
    ("DBBNet-ResNet-34-DBB", 10, "stage4.2.conv2.dbb_avg.bn.bn.weight", (512,)),
    ("DBBNet-ResNet-18-base", 7, "stage4.1.conv2.bn.weight", (512,)),
    ("RepVGG-B1g8", 1000, "stage1.1.rbr_dense.conv.weight", (128, 16, 3, 3)),
    ("RepVGG-D2", 1000, "stage1.0.rbr_1x1.bn.weight", (160,)),
    ("RepMLPNet-T320", 10, "stages.3.0.repmlp_block.fc3.weight", (12800, 100, 1, 1)),
    ("RepLKNet-25L", 10, "stages.3.blocks.0.large_kernel.lkb_origin.conv.weight", (1536, 1, 25, 25)),
    ("RepLKNet-31L-backbone-norm", 0, "stages.3.norm.weight", (1536,)),
    ("repghostnet_repid_1_0x", 1000, "blocks.0.0.ghost1.cheap_operation.0.weight", (8, 1, 3, 3)),
    ("repghostnet_wo_0_8x", 1000, "blocks.8.3.ghost2.fusion_bn.0.weight", (128,)),
    ("repghostnet_0_65x", 1000, "conv_stem.weight", (12, 3, 3, 3)),
]


@pytest.mark.parametrize(("model", "classes", "key", "shape"), OTHERS)
def test_other_networks_of_the_seven_systems_can_be_described(
    model: str, classes: int, key: str, shape: tuple[int, ...]
) -> None:
    network = network_of(model, {"linear.weight": (classes, 1)})
    found = shapes(to_official(made(network), network.layout))
    assert found[key] == shape
    assert classes in [shape[0] for name, shape in found.items() if len(shape) == 2] or not classes


def test_unknown_network_is_told() -> None:
    with pytest.raises(AssertionError, match="RepFoo-A0 is no published network"):
        network_of("RepFoo-A0", {})
