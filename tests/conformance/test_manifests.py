"""Each network has the parameters of the published one, by name and shape, and its multiply-accumulates.

Reads every manifest under the folder; everything runs on the meta device.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import unbranch as ub
from tests.conformance.networks import Network, manifests, network_of, shapes_in
from tests.conformance.official import FOLDER
from unbranch.models.keys import layouts_of, renamed
from unbranch.models.official import to_official

pytestmark = pytest.mark.skipif(not manifests(), reason=f"no manifests in {FOLDER}: set UNBRANCH_OFFICIAL")


def with_form(*forms: str) -> pytest.MarkDecorator:
    """Only those manifests that have one of these forms with parameters."""
    paths = [p for p in manifests().values() if any(json.loads(p.read_text()).get(form) for form in forms)]
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def opened(path: Any, base: bool = False) -> tuple[dict[str, Any], Network]:
    manifest = json.loads(path.read_text())
    network = network_of(manifest["model"], shapes_in(manifest, "train") or shapes_in(manifest, "deploy"))
    if base:
        options = {key: value for key, value in network.options.items() if key != "block"}
        network = Network(network.name, options, network.layout, network.features)
    return manifest, network


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
    """By the side of the image; under the plain name at the manifest's own input."""
    prefix, found = f"macs_{form}", {}
    for key, value in manifest.items():
        if key == prefix:
            found[manifest["input"][-1]] = value
        elif key.startswith(f"{prefix}_") and key.removeprefix(f"{prefix}_").isdigit():
            found[int(key.removeprefix(f"{prefix}_"))] = value
    return found


@with_form("train")
def test_training_form_has_the_published_parameters_and_cost(path: Any) -> None:
    manifest, network = opened(path)
    ours = made(network, manifest["input"][0])
    assert_same(shapes(to_official(ours, network.layout)), shapes_in(manifest, "train"))
    assert count(ours) == manifest["params_train"]
    for side, published in published_macs(manifest, "train").items():
        assert macs(network.run(ours), [manifest["input"][0], side, side]) == published


@with_form("base")
def test_plain_form_has_the_published_parameters_and_cost(path: Any) -> None:
    manifest, network = opened(path, base=True)
    ours = made(network, manifest["input"][0])
    assert_same(shapes(to_official(ours, network.layout)), shapes_in(manifest, "base"))
    assert count(ours) == manifest["params_base"]
    assert macs(ours, manifest["input"]) == manifest["macs_base"]


@with_form("deploy")
def test_collapsed_form_has_the_published_parameters_and_cost(path: Any) -> None:
    """Kernels and cost are equal; norms that the published conversion leaves may be merged, too."""
    manifest, network = opened(path)
    if not manifest.get("train"):
        pytest.skip("a deploy form alone: see the test of loading it")
    plain = ub.collapse(made(network, manifest["input"][0]))
    deploy = shapes_in(manifest, "deploy")
    assert_same(shapes(to_official(plain, network.layout)), deploy)
    assert count(plain) <= manifest["params_deploy"]
    assert kernels(plain) == sum(torch.Size(shape).numel() for shape in deploy.values() if len(shape) > 1)
    assert not len(getattr(plain, "auxiliary", ()))
    for side, published in published_macs(manifest, "deploy").items():
        assert macs(network.run(plain), [manifest["input"][0], side, side]) == published


@with_form("deploy")
def test_every_name_of_the_deploy_form_is_known(path: Any) -> None:
    manifest, network = opened(path)
    layouts = layouts_of(network.name, network.options.get("block"))
    tables = [layout.table for layout in layouts]
    deploy = shapes_in(manifest, "deploy")
    assert any(all(renamed(table, key) is not None for key in deploy) for table in tables)


def test_unknown_network_is_told() -> None:
    with pytest.raises(AssertionError, match="RepFoo-A0 is no published network"):
        network_of("RepFoo-A0", {})
