"""Whole networks give the published logits, in float64: trained, plain and collapsed, loaded under published names."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import unbranch as ub
from tests.conformance.networks import Network, filled, json_in, manifests, metadata_of, network_of, recipe, shapes_in
from tests.conformance.official import FOLDER
from unbranch.weights import load_checkpoint, to_official
from unbranch.weights.canonical import is_pair, to_canonical_state

TOLERANCE = 1e-9  # of the largest logit
LARGE = 80_000_000  # parameters; without --all, such networks run in training form only


@functools.cache
def files() -> dict[str, Path]:
    """The file that has the logits of a network, by the network."""
    found = {}
    for path in sorted(FOLDER.rglob("*.safetensors")):
        for model in json.loads(metadata_of(path).get("models", "{}")):
            found[model] = path
    return found


needs_files = pytest.mark.skipif(not files(), reason=f"no logits of networks in {FOLDER}: set UNBRANCH_OFFICIAL")


def published(model: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Logits by form, and the facts."""
    with safe_open(files()[model], "pt") as file:
        logits = {key.partition("/")[2]: file.get_tensor(key) for key in file.keys() if key.startswith(f"{model}/")}  # noqa: SIM118
        return logits, json.loads(file.metadata()["models"])[model]


def described(model: str) -> Network:
    path = manifests().get(model)
    logits, _ = published(model)
    classes = {"linear.weight": (next(iter(logits.values())).shape[-1], 1)}
    return network_of(model, shapes_in(json_in(path), "train") if path else classes)


def loaded(network: Network, layout: str | None, **options: Any) -> nn.Module:
    """With the recipe's weights, which come under the published names."""
    ours = network.make(**options).double()
    names = {key: tuple(value.shape) for key, value in to_official(ours, layout).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(ours, filled(names))
    return ours


def assert_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    assert ours.shape == theirs.shape
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    assert worst < TOLERANCE, f"{what}: differs by {worst:.1e} of the largest logit"


@pytest.mark.sweep(5)
@needs_files
@pytest.mark.slow
@pytest.mark.parametrize("model", files())
@torch.no_grad()
def test_logits_equal_the_published_ones(model: str, request: pytest.FixtureRequest) -> None:
    """In training form, collapsed, and loaded again from the deploy form under published names."""
    network, (logits, facts) = described(model), published(model)
    x = torch.from_numpy(recipe().make_input(tuple(facts["input_shape"])))
    ours = loaded(network, network.layout, in_channels=x.shape[1])
    outputs = network.run(ours)(x)
    trained = outputs["main"] if isinstance(outputs, dict) else outputs
    for form, theirs in logits.items():
        if form.endswith("_aux_train_form"):
            stage = form.removesuffix("_aux_train_form").removesuffix("_first")
            assert_close(outputs[stage], theirs, form)
        elif form in ("train_form", "main_train_form"):
            assert_close(trained, theirs, form)
    if sum(p.numel() for p in ours.parameters()) > LARGE and not request.config.getoption("--all"):
        return
    fixed_size = network.name.startswith("repmlp")  # of others, proofs find images much smaller than this one
    plain = ub.collapse(ours, torch.zeros_like(x) if fixed_size or x.numel() < 1e5 else None)
    collapsed = plain(x)
    assert_close(collapsed, trained, "collapsed form")
    if "deploy_form" in logits:
        assert_close(collapsed, logits["deploy_form"], "deploy_form")
    state = to_official(plain, network.layout)
    for value in ours.state_dict().values():
        value.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # auxiliary classifiers aren't in a deploy form
        load_checkpoint(ours, state)
    assert_close(ours(x), trained, "training form made of the deploy form")


def with_plain_form() -> list[str]:
    """Networks of which the file has the logits without blocks, too."""
    return [model for model in files() if "base_form" in published(model)[0]]


@needs_files
@pytest.mark.parametrize("model", with_plain_form())
@torch.no_grad()
def test_plain_networks_give_the_published_logits(model: str) -> None:
    logits, facts = published(model)
    network = described(model)
    options = {key: value for key, value in network.options.items() if key != "block"}
    x = torch.from_numpy(recipe().make_input(tuple(facts["input_shape"])))
    assert_close(loaded(Network(network.name, options), network.layout)(x), logits["base_form"], "base_form")


def pruned(network: nn.Module) -> tuple[dict[str, Tensor], list[int]]:
    """The weights of a network with compactors without the channels whose rows are zero, and the widths left.

    What such a channel is constant at behind a depthwise convolution goes into the next biases, which is exact.
    """
    state = to_canonical_state(ub.collapse(network), network)
    left, constant, widths = None, torch.zeros(0), []  # of the channels that come in; None for all
    for path in (path for path, module in network.named_modules() if is_pair(module)):
        weight, bias = state[f"{path}.conv.weight"], state[f"{path}.conv.bias"]
        if left is not None and weight.shape[1] == 1:
            rows, constant = left, bias.relu()
        else:
            if left is not None:
                bias = bias + weight[:, ~left].sum((2, 3)) @ constant[~left]
                weight = weight[:, left]
            rows = weight.flatten(1).norm(dim=1) + bias.abs() > 1e-5
            constant = torch.zeros_like(bias)
        state[f"{path}.conv.weight"], state[f"{path}.conv.bias"] = weight[rows], bias[rows]
        widths.append(int(rows.sum()))
        left = None if rows.all() else rows
    key = next(key for key, value in state.items() if key.startswith("head.") and value.dim() == 2)
    state[key] = state[key] if left is None else state[key][:, left]
    return state, widths


@needs_files
@pytest.mark.parametrize("model", [model for model in files() if "pruned_deps" in published(model)[1]])
@torch.no_grad()
def test_pruned_networks_give_the_published_logits(model: str) -> None:
    """In the widths of the published deploy form; where that is inexact, the logits of the training form."""
    network, (logits, facts) = described(model), published(model)
    state, widths = pruned(loaded(network, network.layout))
    assert widths == facts["pruned_deps"]
    narrow = network.make(pruned_widths=widths).double()
    load_checkpoint(narrow, state)
    outputs = narrow(torch.from_numpy(recipe().make_input(tuple(facts["input_shape"]))))
    for form in {"train_form", "deploy_form"} & logits.keys():
        assert_close(outputs, logits[form], form)


@needs_files
@pytest.mark.parametrize("model", [model for model in files() if model.endswith("cfqkbnc")])
@torch.no_grad()
def test_a_weight_off_by_a_millionth_would_be_seen(model: str) -> None:
    network, (logits, facts) = described(model), published(model)
    ours = loaded(network, network.layout)
    weight = max(ours.parameters(), key=Tensor.numel)
    weight += 1e-6 * torch.randn_like(weight)
    x = torch.from_numpy(recipe().make_input(tuple(facts["input_shape"])))
    worst = (ours(x) - logits["train_form"]).abs().max() / logits["train_form"].abs().max()
    assert worst > 10 * TOLERANCE
