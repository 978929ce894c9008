"""``insert_compactors``: compactors after the convolutions of a network that can lose channels."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from unbranch.blocks import BranchedConv, Compactor
from unbranch.convert.prove.inputs import as_inputs
from unbranch.convert.report import report
from unbranch.errors import InputError
from unbranch.expansion import expand
from unbranch.expansion.sites import find_sites
from unbranch.graph.eval_view import unwrap_model
from unbranch.grids import is_depthwise
from unbranch.provenance import record_report, record_transform, register_replay
from unbranch.prune.graph import PruningGraph, layer_of, read_units
from unbranch.prune.report import CompactorReport
from unbranch.prune.units import PruningUnit

COMPACT = "compact"  # kind of the transform: compactors in the blocks of a network
LayerScope: TypeAlias = Literal["internal", "all"]


def insert_compactors(
    model: nn.Module, example_input: Any, *, layers: LayerScope = "internal", include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
) -> nn.Module:  # fmt: skip
    """Return a copy of a network with compactors after convolutions, which computes the same function.

    A compactor is a 1×1 convolution that starts as the identity; ``ResRep`` drives rows of it to zero in training, and
    ``finalize`` removes the channels. It comes after the batch norm of a convolution, or after the sum of a block's
    branches. Each place was tried: with half of the channels removed, the network was the same function. A depthwise
    convolution has one, a diagonal one, where its channels couldn't be removed otherwise.

    Args:
        model: any network, in any mode; it isn't changed.
        example_input: a tensor, or a tuple of the forward's arguments, of the size that MACs are counted for.
        layers: ``"internal"`` ones, as the paper prunes: one layer produces the channels, no other is added, and one
            layer consumes them, through any norms, activations and depthwise convolutions. ``"all"``: whatever can be
            pruned; convolutions that are added lose channels together.
        include: pattern, or patterns, of paths of convolutions and blocks, such as ``"layer3.*"``.
        exclude: patterns of paths to skip.

    Returns:
        The network; ``unbranch.report`` reads its ``CompactorReport``.

    Raises:
        InputError: if nothing can be pruned, with the reason.

    Source: Ding et al., "ResRep", ICCV 2021, https://arxiv.org/abs/2007.03260, section 3.2.

    Example:
        >>> import torch, unbranch as ub
        >>> net = ub.create_model("resnet8_cifar", num_classes=10)
        >>> ub.report(ub.prune.insert_compactors(net, torch.randn(1, 3, 32, 32))).inserted
        ('stages.0.0.conv1.conv', 'stages.1.0.conv1.conv', 'stages.2.0.conv1.conv')
    """
    return explain_pruning(model, example_input, layers=layers, include=include, exclude=exclude).network


def explain_pruning(
    model: nn.Module, example_input: Any, *, layers: LayerScope = "internal", include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
) -> PruningGraph:  # fmt: skip
    """Return what can be pruned of a network without compactors: the same analysis as ``insert_compactors``.

    Args and errors as for ``insert_compactors``.

    Returns:
        The graph: its ``report``, which prints as a table; ``apply()``, which returns the network with compactors; and
        the costs by the channels of each unit. ``ResRep`` and ``finalize`` take it as ``graph``.
    """
    if layers not in get_args(LayerScope):
        raise InputError(f"`layers` must be one of {', '.join(get_args(LayerScope))}, got {layers!r}")
    network, inputs = unwrap_model(model), as_inputs(example_input)
    if any(isinstance(module, Compactor) for module in network.modules()):
        raise InputError(f"{type(network).__name__} has compactors already: pass it to ResRep")
    found, depthwise, skipped = _candidates(network, _patterns(include), _patterns(exclude))
    prepared = _with_compactors(network, [*found, *depthwise], skipped)
    compactors = [path for path, module in prepared.named_modules() if isinstance(module, Compactor)]
    optional = {path for path in compactors if layer_of(path) in depthwise}
    graph, plain = read_units(prepared, inputs, untrained=True, optional=optional)
    wanted = [unit for unit in graph.units if layers == "all" or unit.internal]
    taken = {path for unit in wanted for path, _ in unit.rows}
    skipped |= {layer_of(path): reason for path, reason in graph.skipped.items() if path not in optional}
    for unit in graph.units:
        skipped |= {layer_of(path): _why_outside(unit) for path, _ in unit.rows if path not in taken}
    sites = {layer_of(path) for path in taken}
    if not sites:
        path = next((path for path in found if path in skipped), next(iter(skipped)))
        hint = "; layers='all' allows others than internal ones" if len(graph.units) > len(wanted) else ""
        raise InputError(f"nothing in {type(network).__name__} can be pruned; {path}: {skipped[path]}{hint}")
    chosen = tuple(path for path in (*found, *depthwise) if path in sites)
    made = CompactorReport(chosen, {path: reason for path, reason in skipped.items() if path not in sites})
    result = _with_compactors(network, chosen)
    record_report(result, COMPACT, made)
    vars(result)["attachment"] = made  # deprecated, as version 0.1 set it
    if any(isinstance(module, Compactor) for module in plain.modules()):  # one that isn't inserted has a cost there
        return replace(read_units(result, inputs, untrained=True)[0], report=made)
    kept = [number for number, unit in enumerate(graph.units) if all(path in taken for path, _ in unit.rows)]
    return replace(graph.select(kept), network=result, skipped={}, report=made)


def _candidates(
    network: nn.Module, include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[str], list[str], dict[str, str]]:
    """Return blocks and convolutions with a norm of their own, the depthwise ones apart, and reasons for the others."""
    sites, skipped = find_sites(network)
    blocks = {path: module for path, module in network.named_modules() if isinstance(module, BranchedConv) and path}
    inside = tuple(f"{path}." for path in blocks)
    skipped = {path: reason for path, reason in skipped.items() if not path.startswith(inside)}
    modules: dict[str, Any] = {path: network.get_submodule(path) for path in sites} | blocks
    found: list[str] = []
    depthwise: list[str] = []
    for path, module in modules.items():
        if not any(fnmatchcase(path, pattern) for pattern in include):
            skipped[path] = "it isn't included"
        elif any(fnmatchcase(path, pattern) for pattern in exclude):
            skipped[path] = "it is excluded"
        elif module.groups > 1 and not is_depthwise(module):
            skipped[path] = "it is grouped, and a compactor would mix its groups"
        elif path in sites and sites[path].norm is None:
            skipped[path] = "no batch norm of its own reads it"
        elif is_depthwise(module):
            skipped[path] = "it is depthwise: it loses the channels that the layer before it loses, if that is included"
            depthwise.append(path)
        else:
            found.append(path)
    if not found:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:3])
        raise InputError(f"nothing in {type(network).__name__} can be pruned; {reasons or 'it has no convolution'}")
    return found, depthwise, skipped


def _why_outside(unit: PruningUnit) -> str:
    if unit.added or len(unit.producers) > 1:
        return "it isn't internal: others are added to its channels"
    return f"it isn't internal: {len(unit.consumers)} layers read its channels"


def _with_compactors(
    network: nn.Module, sites: Collection[str], skipped: dict[str, str] | None = None
) -> nn.Module:  # fmt: skip
    """Return a copy with compactors after these convolutions and blocks; add what expand skips to ``skipped``."""
    blocks = [path for path in sites if isinstance(network.get_submodule(path), BranchedConv)]
    if chosen := frozenset(sites) - frozenset(blocks):
        result = expand(network, "compactor", where=lambda path, _: path in chosen)
        if skipped is not None:
            skipped |= report(result, "expand").skipped
    else:
        result = copy.deepcopy(network)
    if blocks:
        for path in blocks:
            _add_compactor(result.get_submodule(path))
        record_transform(result, result, {"kind": COMPACT, "blocks": list(blocks)})
    return result


def _add_compactor(block: Any) -> None:
    """Put a compactor after the sum of a block's branches, before its activation."""
    like = next(block.parameters())
    compactor = Compactor(block.out_channels, block.ndim, like.device, like.dtype, diagonal=is_depthwise(block))
    layers: OrderedDict[str, nn.Module] = OrderedDict(compactor=compactor.train(block.training))
    if block.post is not None:
        layers["activation"] = block.post
    block.post = nn.Sequential(layers).train(block.training)


@register_replay(COMPACT)
def _replay(network: nn.Module, transform: dict[str, Any]) -> nn.Module:
    """Put compactors into the blocks of a recorded transform again."""
    paths, modules = transform.get("blocks"), dict(network.named_modules())
    known = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
    if not known or not all(isinstance(modules.get(path), BranchedConv) for path in paths or []):
        raise InputError("its record of compactors doesn't fit the network, which must be as it was before")
    return _with_compactors(network, paths or [])


def _patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
