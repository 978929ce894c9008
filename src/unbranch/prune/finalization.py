"""``convert``: the channels that training has driven to zero, taken out of the collapsed network."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from unbranch.blocks import Compactor
from unbranch.convert import verify
from unbranch.convert.costs import cost_of
from unbranch.convert.report import NetworkCost, report
from unbranch.convert.verify import as_inputs
from unbranch.errors import DifferenceError
from unbranch.graph.shadow import unwrapped
from unbranch.provenance import record_report
from unbranch.prune.dependencies import Dependencies
from unbranch.prune.narrow import record_narrowing, shapes_of
from unbranch.prune.removal import random_like, remove_channels
from unbranch.prune.select import Limits, keep_rows
from unbranch.prune.structure import Structure, along_of, structure_of
from unbranch.prune.units import Unit

THRESHOLD = 1e-5  # the published one


@dataclass(frozen=True)
class Pruning:
    """What a conversion took out.

    Args:
        widths: by convolution of the plain network, its output channels before and after.
        stayed: by convolution, how many of its channels are zero and had to stay, because what they become isn't
            zero where a layer that reads them pads with zeros.
        left: compactors that were only merged, with the reason.
        macs: multiply-accumulates of convolutions and linear layers before and after, as the papers count them.
        before, after: costs of the collapsed network, whole and pruned; multiply-accumulates as PyTorch counts them.
    """

    widths: dict[str, tuple[int, int]]
    stayed: dict[str, int]
    left: dict[str, str]
    macs: tuple[int, int]
    before: NetworkCost
    after: NetworkCost

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        gone = sum(before - after for before, after in self.widths.values())
        lines = [
            f"{gone} of {sum(before for before, _ in self.widths.values())} channels are gone; "
            f"{self.macs[0]:,} → {self.macs[1]:,} multiply-accumulates ({_share(*self.macs)}), "
            f"{self.before.params:,} → {self.after.params:,} parameters "
            f"({_share(self.before.params, self.after.params)})",
        ]
        lines += [
            f"  {path}  {before} → {after}" + (f", {self.stayed[path]} of them zero" if path in self.stayed else "")
            for path, (before, after) in self.widths.items()
        ]
        return "\n".join([*lines, *(f"  {path} only merged: {reason}" for path, reason in self.left.items())])


def _share(before: int, after: int) -> str:
    return f"{100 * after / max(1, before):.2f} % left"


def row_norms(network: nn.Module, unit: Unit) -> Tensor:
    """The norm of each channel's row of the compactor, or the root mean square of its rows' norms, ``(C,)``."""
    squares = [_kernel(network, path)[rows].double().square().sum(1) for path, rows in unit.rows]
    return torch.stack(squares).mean(0).sqrt()


def _kernel(network: nn.Module, path: str) -> Tensor:
    compactor = network.get_submodule(path)
    assert isinstance(compactor, Compactor)
    return compactor.conv.weight.detach().flatten(1)


def kept_channels(
    network: nn.Module, structure: Structure, threshold: float, limits: Limits, masked: bool = False
) -> list[Tensor]:
    """By unit, which channels ``(C,)`` a conversion keeps."""
    keep = []
    for unit in structure.units:
        path, rows = unit.rows[0]
        mask = cast(Tensor, network.get_submodule(path).mask)[rows] if masked else None
        keep.append(keep_rows(row_norms(network, unit), threshold, limits, mask))
    return keep


@torch.no_grad()
def zeroed(network: nn.Module, structure: Structure, keep: list[Tensor]) -> nn.Module:
    """A copy of a network with compactors, in evaluation, with the rows that aren't kept set to zero."""
    result = copy.deepcopy(network).eval()
    for unit, kept in zip(structure.units, keep, strict=True):
        for path, rows in unit.rows:
            _kernel(result, path)[rows[~kept]] = 0
    return result


def convert(
    model: nn.Module, example_input: Any, *, threshold: float = THRESHOLD, multiple: int = 8,
    minimum: int | float = 1, masked: bool = False,
) -> nn.Module:  # fmt: skip
    """A new, plain network without the channels whose rows of compactors are below the threshold.

    It computes the same function as the network with those rows set to zero, which is checked in float64. Branches
    and compactors are merged as ``collapse`` does; a channel that is constant but not zero goes into the biases of
    those that read it, or stays where zeros that they pad with make that inexact.

    Args:
        model: a network with compactors, in any mode; it isn't changed.
        example_input: a tensor, or a tuple of the forward's arguments.
        threshold: norm of a row below which its channel goes.
        multiple: widths are rounded up to a multiple of this, by keeping the largest of the rows that would go; 1 for
            the published choice.
        minimum: channels that each layer keeps: a number of them, or a fraction of all that it has.
        masked: channels that are masked go too, whatever their rows are; that may cost accuracy.

    Returns:
        The network, with its ``Pruning`` as ``pruning``.

    Raises:
        InputError: if there are no compactors, or the network can't be read.
        DifferenceError: if the result computes something else.

    Example:
        >>> import unbranch as ub
        >>> x = torch.randn(1, 3, 32, 32)
        >>> net = ub.prune.attach(ub.create_model("resnet8_cifar", num_classes=10), x)
        >>> with torch.no_grad():
        ...     net.stages[0][0].conv1.conv.compactor.conv.weight[:6] = 0
        >>> ub.prune.convert(net, x, multiple=1).stages[0][0].conv1.conv
        Conv2d(16, 10, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    network, inputs = unwrapped(model), as_inputs(example_input)
    structure = structure_of(network, inputs)
    keep = kept_channels(network, structure, threshold, Limits(minimum=minimum, multiple=multiple), masked)
    return converted(network, structure, keep)


def converted(network: nn.Module, structure: Structure, keep: list[Tensor]) -> nn.Module:
    """The collapsed network without the channels that aren't kept; ``structure`` is that of the network as it is."""
    plain, inputs = structure.plain, structure.inputs
    before, cost = shapes_of(plain), cost_of(plain, inputs)
    chosen = [(u.layer, u.channels[~kept].tolist()) for u, kept in zip(structure.units, keep, strict=True)]
    stayed = remove_channels(Dependencies(plain, inputs), inputs, chosen, along_of(structure.units))
    expected = zeroed(network, structure, keep)
    for given in (inputs, random_like(inputs, seed=2)):
        check = verify(expected, plain, given)
        if not check.within_noise:
            raise DifferenceError(f"the pruned network differs; nothing is returned\n{check}")
    record_narrowing(plain, before)
    after = cost_of(plain, inputs)
    record_report(plain, "collapse", replace(report(plain, "collapse"), after=after))
    plain.collapse_report = report(plain, "collapse")  # type: ignore[assignment]
    plain.pruning = Pruning(  # type: ignore[assignment]
        _widths(plain, structure),
        {path: len(channels) for path, channels in stayed.items()},
        structure.left,
        (structure.macs(structure.full), _macs(plain, structure)),
        cost,
        after,
    )
    record_report(plain, "prune", plain.pruning)
    return plain.train(network.training)


def _widths(plain: nn.Module, structure: Structure) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for layer in structure.layers:
        if layer.gives.each and not layer.depthwise:
            module: Any = plain.get_submodule(layer.path)
            found[layer.path] = (layer.gives.at(structure.full), len(module.weight))
    return found


def _macs(plain: nn.Module, structure: Structure) -> int:
    """Of the convolutions and linear layers as they are now."""
    return sum(
        layer.points * cast(Tensor, plain.get_submodule(layer.path).weight).numel() for layer in structure.layers
    )
