"""``attach``: compactors behind the convolutions of a network that can lose channels."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import nn

from unbranch.blocks import BranchedConv, Compactor
from unbranch.blocks.parts import is_depthwise
from unbranch.convert.report import report
from unbranch.convert.verify import as_inputs
from unbranch.errors import InputError
from unbranch.expansion import expand
from unbranch.expansion.sites import find_sites
from unbranch.graph.shadow import unwrapped
from unbranch.provenance import record_report, record_transform, register_replay
from unbranch.prune.structure import STAYS, Structure, structure_of
from unbranch.prune.units import Unit

KIND = "compact"  # of the step in a network's history: compactors in its blocks
Layers = Literal["internal", "all"]


@dataclass(frozen=True)
class Attachment:
    """What ``attach`` did: convolutions and blocks that have a compactor, and those that don't, with the reason."""

    taken: tuple[str, ...]
    left: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} layers have compactors, {len(self.left)} were left alone"]
        lines += [f"  {path}" for path in self.taken]
        return "\n".join([*lines, *(f"  {path} left: {reason}" for path, reason in self.left.items())])


def attach(
    model: nn.Module, example_input: Any, *, layers: Layers = "internal", include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
) -> nn.Module:  # fmt: skip
    """A copy of a network with compactors behind convolutions, which computes the same function and can be pruned.

    A compactor is a 1×1 convolution that starts as the identity; ``ResRep`` drives rows of it to zero in training, and
    ``convert`` takes the channels out. It comes behind the batch norm of a convolution, or behind the sum of a block's
    branches. Each place has been tried: with half of the channels gone the network was the same function. A depthwise
    convolution has one, a diagonal one, where its channels couldn't be taken out otherwise.

    Args:
        model: any network, in any mode; it isn't changed.
        example_input: a tensor, or a tuple of the forward's arguments, of the size that MACs are to be counted for.
        layers: ``"internal"`` ones, as the paper prunes: one layer gives their channels, no other is added, and one
            layer mixes what it reads of them, however many norms, activations and depthwise convolutions lie
            between. ``"all"``: whatever can be pruned; convolutions that are added lose channels together.
        include, exclude: patterns of paths of convolutions and blocks, such as ``"layer3.*"``.

    Returns:
        The network, with its ``Attachment`` as ``attachment``.

    Raises:
        InputError: if nothing can be pruned, with the reason.

    Source: Ding et al., "ResRep", ICCV 2021, https://arxiv.org/abs/2007.03260, section 3.2.

    Example:
        >>> import torch, unbranch as ub
        >>> net = ub.create_model("resnet8_cifar", num_classes=10)
        >>> ub.prune.attach(net, torch.randn(1, 3, 32, 32)).attachment.taken
        ('stages.0.0.conv1.conv', 'stages.1.0.conv1.conv', 'stages.2.0.conv1.conv')
    """
    if layers not in get_args(Layers):
        raise InputError(f"layers={layers!r} is none of {', '.join(get_args(Layers))}")
    network, inputs = unwrapped(model), as_inputs(example_input)
    if any(isinstance(module, Compactor) for module in network.modules()):
        raise InputError(f"{type(network).__name__} has compactors already: pass it to ResRep")
    found, depthwise, left = _candidates(network, _patterns(include), _patterns(exclude))
    structure = _tried(network, inputs, found, depthwise, left)
    wanted = [unit for unit in structure.units if layers == "all" or unit.internal]
    outside = [unit for unit in structure.units if unit not in wanted]
    left |= {_place(path): reason for path, reason in structure.left.items()}
    left |= {_place(path): _why_outside(unit) for unit in outside for path, _ in unit.rows}
    taken = {_place(path) for unit in wanted for path, _ in unit.rows}
    if not taken:
        tried = [path for path in found if path in left]
        path = (tried or list(left))[0]
        raise InputError(
            f"nothing in {type(network).__name__} can be pruned; {path}: {left[path]}"
            + ("; layers='all' takes others than internal ones" if outside else "")
        )
    chosen = tuple(path for path in (*found, *depthwise) if path in taken)
    result = _with_compactors(network, chosen)
    result.attachment = Attachment(  # type: ignore[assignment]
        chosen, {path: reason for path, reason in left.items() if path not in taken}
    )
    record_report(result, KIND, result.attachment)
    return result


def _candidates(
    network: nn.Module, include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[str], list[str], dict[str, str]]:
    """Convolutions with a norm of their own and blocks, the depthwise ones apart, and those left, with the reason."""
    places, left = find_sites(network)
    blocks = {
        path: module for path, module in network.named_modules() if isinstance(module, BranchedConv) and path
    }  # fmt: skip
    inside = tuple(f"{path}." for path in blocks)
    left = {path: reason for path, reason in left.items() if not path.startswith(inside)}
    modules: dict[str, Any] = {path: network.get_submodule(path) for path in places} | blocks
    found: list[str] = []
    depthwise: list[str] = []
    for path, module in modules.items():
        if not any(fnmatchcase(path, pattern) for pattern in include):
            left[path] = "it isn't included"
        elif any(fnmatchcase(path, pattern) for pattern in exclude):
            left[path] = "it is excluded"
        elif module.groups > 1 and not is_depthwise(module):
            left[path] = "it is grouped, and a compactor would mix its channels"
        elif path in places and places[path].norm is None:
            left[path] = "no batch norm of its own is behind it"
        elif is_depthwise(module):
            left[path] = "it is depthwise: it loses the channels that the layer before it loses, if that is included"
            depthwise.append(path)
        else:
            found.append(path)
    if not found:
        told = "; ".join(f"{path}: {reason}" for path, reason in list(left.items())[:3]) or "it has no convolution"
        raise InputError(f"nothing in {type(network).__name__} can be pruned; {told}")
    return found, depthwise, left


def _tried(
    network: nn.Module, inputs: tuple[Any, ...], found: list[str], depthwise: list[str], left: dict[str, str]
) -> Structure:
    """The structure of the network with compactors wherever one can be put; what expand leaves alone goes to left.

    Behind depthwise convolutions only those that something can't be pruned without: where what a depthwise convolution
    makes of zeros meets a squeeze-and-excitation, or zeros that a layer pads with.
    """
    structure = structure_of(_with_compactors(network, found, left), inputs, untrained=True)
    staying = {path for path, reason in structure.left.items() if reason == STAYS}
    if not depthwise or not staying:
        return structure
    everywhere = structure_of(_with_compactors(network, [*found, *depthwise]), inputs, untrained=True)
    needed = [_place(path) for unit in everywhere.units if staying & unit.givers for path, _ in unit.along]
    if not needed:
        return structure
    return structure_of(_with_compactors(network, [*found, *needed]), inputs, untrained=True)


def _why_outside(unit: Unit) -> str:
    if unit.added or len(unit.givers) > 1:
        return "it isn't internal: others are added to its channels"
    return f"it isn't internal: {len(unit.readers)} layers read its channels"


def _place(compactor: str) -> str:
    """The path of the convolution or block that a compactor belongs to."""
    return compactor.removesuffix(".compactor").removesuffix(".post")


def _with_compactors(network: nn.Module, places: Collection[str], left: dict[str, str] | None = None) -> nn.Module:
    """A copy with compactors behind these convolutions and blocks."""
    blocks = [path for path in places if isinstance(network.get_submodule(path), BranchedConv)]
    if chosen := frozenset(places) - frozenset(blocks):
        result = expand(network, "compactor", where=lambda path, _: path in chosen)
        if left is not None:
            left |= report(result, "expand").skipped
    else:
        result = copy.deepcopy(network)
    if blocks:
        for path in blocks:
            _compact(result.get_submodule(path))
        record_transform(result, result, {"kind": KIND, "blocks": list(blocks)})
    return result


def _compact(block: Any) -> None:
    """Put a compactor behind the sum of a block's branches, before its activation."""
    like = next(block.parameters())
    compactor = Compactor(block.out_channels, block.ndim, like.device, like.dtype, diagonal=is_depthwise(block))
    layers: OrderedDict[str, nn.Module] = OrderedDict(compactor=compactor.train(block.training))
    if block.post is not None:
        layers["activation"] = block.post
    block.post = nn.Sequential(layers).train(block.training)


@register_replay(KIND)
def _replay(network: nn.Module, step: dict[str, Any]) -> nn.Module:
    """Put compactors into the blocks of a recorded step again."""
    paths, modules = step.get("blocks"), dict(network.named_modules())
    known = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
    if not known or not all(isinstance(modules.get(path), BranchedConv) for path in paths or []):
        raise InputError("its record of compactors doesn't fit the network, which has to be as it was before")
    return _with_compactors(network, paths or [])


def _patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
