"""ResRep gives what the published code gives: training steps, masks, costs, converted blocks and networks.

Reads every file under the folder that holds a trace of ResRep, a block with a compactor, a table of costs, or a
network with the widths that it was pruned to.
"""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import unbranch as ub
from tests.conformance.networks import json_in, metadata_of, recipe
from tests.conformance.official import FOLDER, unit
from tests.conformance.test_blocks import FILES as BLOCK_FILES
from tests.conformance.test_blocks import read
from tests.conformance.test_models import assert_close, described, files, loaded, published
from unbranch.blocks import Compactor
from unbranch.prune import PruningGraph, ResRep, finalize, read_graph
from unbranch.prune.select import Limits, select_masks
from unbranch.weights.canonical import is_pair


def traces(kind: str) -> list[Path]:
    return [p for p in sorted(FOLDER.rglob("*.safetensors")) if metadata_of(p).get("block", "").startswith(kind)]


# --- one training step ----------------------------------------------------------------------------------


def toy(state: dict[str, Tensor]) -> nn.Module:
    """Convolutions with norms, the second of stride 2, compactors and ReLUs where they are; a mean, a classifier."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name in sorted({key.partition(".")[0] for key in state if key.startswith("conv")}):
        layers[name] = unit(state, name, 2 if name == "conv2" else 1)
        if f"{name}.compactor.mask" in state:
            layers[name].add_module("compactor", Compactor(len(state[f"{name}.compactor.mask"])))
            layers[f"{name}_relu"] = nn.ReLU()
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["linear"] = nn.Linear(*reversed(state["linear.weight"].shape))
    network = nn.Sequential(layers).double()
    network.load_state_dict(ours(state))
    return network


def ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("compactor.pwc", "compactor.conv"): value for key, value in state.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("path", traces("ResRep training step"), ids=lambda path: path.stem)
def test_training_steps_are_the_published_ones(path: Path) -> None:
    facts, tensors = metadata_of(path), load_file(path)
    network = toy(part(tensors, "state."))
    parameters = dict(network.named_parameters())
    # the compactors' momentum and decay come from ResRep; what the file says of them is checked below
    groups = [
        {**group, "params": [parameters[group["name"].replace("pwc", "conv")]]} for group in json.loads(facts["groups"])
    ]
    expected = {group["name"].replace("pwc", "conv"): group for group in json.loads(facts["groups"])}
    for group in groups:
        group["momentum"] = 0.9
    optimizer = torch.optim.SGD(groups, lr=float(facts["lr"]))
    strength = float(facts["lasso_strength"])
    resrep = ResRep(network, tensors["step0.input"], optimizer, target=1.0, strength=strength, warmup=10**6)
    names = {id(parameter): name for name, parameter in parameters.items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            told = expected[names[id(parameter)]]
            assert (group["momentum"], group["weight_decay"]) == (told["momentum"], told["weight_decay"])
    network.train()
    for step in range(int(facts["steps"])):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(tensors[f"step{step}.input"]), tensors[f"step{step}.label"])
        assert abs(float(loss.detach()) - float(tensors[f"step{step}.loss"])) < 1e-12
        loss.backward()
        resrep.step()
        optimizer.step()
        after, state = ours(part(tensors, f"step{step}.after.")), network.state_dict()
        assert after.keys() == state.keys()
        for key, value in after.items():
            assert torch.allclose(state[key].double(), value.double(), rtol=0, atol=1e-12), f"step {step}: {key}"


# --- masks ----------------------------------------------------------------------------------------------


def cifar_cost(widths: list[int]) -> float:
    """The published count for a ResNet on 32×32: a projection counts as 2×2."""
    n = (len(widths) - 3) // 6
    total, before, index = 9.0 * 3 * widths[0] * 32 * 32, widths[0], 1
    for stage in range(3):
        side = 32 >> stage
        if stage:
            total += 4.0 * before * widths[index] * side * side
            index += 1
        for _ in range(n):
            total += 9.0 * (before * widths[index] + widths[index] * widths[index + 1]) * side * side
            before, index = widths[index + 1], index + 2
    return total + 10 * before


def rounds(tensors: dict[str, Tensor], layers: list[int], what: str) -> Iterator[list[Tensor]]:
    count = 1 + max(int(key[5:8]) for key in tensors if key.startswith("round"))
    for number in range(count):
        yield [tensors[f"round{number:03d}.layer{layer:03d}.{what}"] for layer in layers]


@pytest.mark.parametrize("path", traces("ResRep mask update"), ids=lambda path: path.stem)
def test_masks_are_the_published_ones(path: Path) -> None:
    facts, tensors = metadata_of(path), load_file(path)
    assert "CIFAR ResNet" in facts["flops"]
    widths, layers = json.loads(facts["deps"]), json.loads(facts["target_layers"])
    limits = Limits(int(facts["begin_granularity"]), int(facts["num_at_least"]))

    def cost(pruned: list[int]) -> float:
        return cifar_cost([dict(zip(layers, pruned, strict=True)).get(i, width) for i, width in enumerate(widths)])

    budget = float(facts["flops_target"]) * cifar_cost(widths)
    masks = [torch.ones(widths[layer]) for layer in layers]
    masks = [torch.tensor(mask) for mask in json.loads(facts["masks_before"])] if "masks_before" in facts else masks
    for norms, expected in zip(rounds(tensors, layers, "metric"), rounds(tensors, layers, "mask"), strict=True):
        masks = select_masks(norms, masks, cost, budget, limits)
        assert all(mask.equal(theirs.to(mask)) for mask, theirs in zip(masks, expected, strict=True))
    left = json.loads(facts["unmasked_deps_after_last_round"])
    assert [int(mask.sum()) for mask in masks] == [left[layer] for layer in layers]
    ratio = cost([left[layer] for layer in layers]) / cifar_cost(widths)
    assert ratio == pytest.approx(float(facts["flops_ratio_after_last_round"]), abs=1e-6)


# --- costs ----------------------------------------------------------------------------------------------


def tables() -> dict[str, list[Any]]:
    """Widths and costs by network, of every file that has nothing else."""
    found: dict[str, list[Any]] = {}
    for path in sorted(FOLDER.rglob("resrep*.json")):
        content = json_in(path)
        found |= content if isinstance(content, dict) else {}
    return found


@functools.cache
def with_compactors(name: str, side: int, classes: int) -> PruningGraph:
    network = ub.create_model(name, num_classes=classes, block="compactor").eval()
    return read_graph(network, (torch.zeros(1, 3, side, side),))


def targets_of(name: str, deps: list[int]) -> list[int]:
    """The published numbers of the layers that are pruned."""
    if name.startswith("resnet50"):
        starts = [2, 12, 25, 44]  # behind each projection
        return [s + 3 * i + j for s, n in zip(starts, (3, 4, 6, 3), strict=True) for i in range(n) for j in (0, 1)]
    if name.startswith("cifar"):
        n = (len(deps) - 3) // 6
        return [s + 2 * i for s in (1, 2 * n + 2, 4 * n + 3) for i in range(n)]
    return list(range(0, len(deps), 2))


# Our network, the side of its images, its classes; what the published count says more than multiply-accumulates are.
COUNTED: dict[str, tuple[str, int, int, Callable[[list[int]], float]]] = {
    "resnet50": ("resnet50", 224, 1000, lambda _: 0.0),
    # in this one the first 1×1 of the later stages counts where its output would be
    "resnet50_original_version": (
        "resnet50", 224, 1000,
        lambda w: -sum(0.75 * w[i - 2] * w[i] * side**2 for i, side in ((12, 56), (25, 28), (44, 14))),
    ),
    # a projection counts as 2×2
    "cifar_resnet_n9": ("resnet56_cifar", 32, 10, lambda w: 3.0 * 256 * (w[18] * w[19]) + 3.0 * 64 * (w[37] * w[38])),
    "cifar_resnet_n18": ("resnet110_cifar", 32, 10, lambda w: 3.0 * 256 * (w[36] * w[37]) + 3.0 * 64 * (w[73] * w[74])),
    "mobilenet_v1": ("mobilenet_v1", 224, 1000, lambda _: 0.0),
}  # fmt: skip


@pytest.mark.sweep(2)
@pytest.mark.slow
@pytest.mark.xdist_group("published costs")  # one process reads each network
@pytest.mark.parametrize("name", tables())
def test_costs_are_the_published_ones(name: str) -> None:
    assert name in COUNTED, f"it isn't known here which network {name} is"
    network, side, classes, more = COUNTED[name]
    structure = with_compactors(network, side, classes)
    for deps, flops in tables()[name]:
        widths = [deps[layer] for layer in targets_of(name, deps)]
        assert len(widths) == len(structure.units)
        assert structure.macs(widths) + more(deps) == pytest.approx(flops, rel=1e-7)  # they add in float32


@pytest.mark.slow
@pytest.mark.xdist_group("published costs")
def test_resnet50_has_the_published_size_at_the_widths_of_the_log() -> None:
    if "resnet50" not in tables():
        pytest.skip(f"no table of costs in {FOLDER}")
    structure = with_compactors("resnet50", 224, 1000)
    deps = tables()["resnet50"][1][0]
    widths = [deps[layer] for layer in targets_of("resnet50", deps)]
    assert round(structure.params(widths) / 1e6, 2) == 16.53
    assert round(100 * structure.macs(widths) / structure.macs(structure.full), 2) == 45.46
    narrow = ub.create_model("resnet50", pruned_widths=deps)
    plain = ub.collapse(narrow.eval())
    assert sum(p.numel() for p in plain.parameters()) == structure.params(widths)


# --- conversion -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [p for p in BLOCK_FILES if "compactor" in metadata_of(p).get("block", "")], ids=lambda path: path.stem
)
@torch.no_grad()
def test_blocks_are_converted_as_published(path: Path) -> None:
    fixture = read(path)
    network, x = fixture.module(), fixture.tensors["input"]
    plain = finalize(network, x, threshold=fixture.arguments.get("threshold", 1e-5), multiple=1)
    assert (plain(x) - fixture.tensors["output_deploy"]).abs().max() < 1e-10
    deploy = fixture.part("deploy.")
    kernels = sorted(tuple(value.shape) for key, value in deploy.items() if key.endswith("weight"))
    assert sorted(tuple(p.shape) for p in plain.parameters() if p.dim() > 1) == kernels


@pytest.mark.slow
@pytest.mark.parametrize("model", [model for model in files() if "pruned_deps" in published(model)[1]])
@torch.no_grad()
def test_networks_are_converted_to_the_published_widths(model: str) -> None:
    """The function is that of the training form, for MobileNet too, whose published conversion changes it."""
    description, (logits, facts) = described(model), published(model)
    network = loaded(description, description.layout)
    x = torch.from_numpy(recipe().make_input(tuple(facts["input_shape"])))
    plain = finalize(network, x, multiple=1)
    assert_close(plain(x), logits["train_form"], "pruned form")
    modules = dict(plain.named_modules())
    places = [path for path, module in network.named_modules() if is_pair(module)]
    layers = [modules[path] if isinstance(modules[path], nn.Conv2d) else modules[f"{path}.conv"] for path in places]
    assert [layer.out_channels for layer in layers] == facts["pruned_deps"]
