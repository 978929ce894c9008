"""What a network can do with weights that almost fit: other classes, other input channels, no head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unbranch.blocks import BranchedConv
from unbranch.convert import equivalent_kernel
from unbranch.models.forms import State, key_of
from unbranch.models.names import create
from unbranch.models.network import Features, Network
from unbranch.provenance import provenance_of

COUNTERS = ("total_ops", "total_params")  # of a profiler, which leaves them in what it has profiled
# What only some networks have: backbones have no head, a deploy form no auxiliary classifiers, few have norms on maps.
ENDS = ("head.", "auxiliary.", "norms.")
FIRST = ("stem.", "stages.0.")  # parts that may see the image; a plain stack has no stem


@dataclass
class Fit:
    """A state on its way to fit a network, by the names between its forms.

    Args:
        network: in the form that the state is for.
        shapes: of all that the network knows, by name.
        state: what is left of the file.
        adapted, left, ignored, merged: see ``Loaded``.
    """

    network: nn.Module
    shapes: Mapping[str, torch.Size]
    state: State
    adapted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    merged: bool = False


def fitted(network: nn.Module, shapes: Mapping[str, torch.Size], state: State) -> Fit:
    """The state without what the network has no use for, with classifier and stem as the network needs them."""
    fit = Fit(network, shapes, dict(state))
    _drop_useless(fit)
    if isinstance(network, Network | Features):
        _keep_ends(fit)
        _fit_stem(fit)
    return fit


def is_foreign(key: str) -> bool:
    """Whether a tensor is no network's: widths of a pruned one, or the counters of a profiler."""
    return key == "deps" or key.rpartition(".")[2] in COUNTERS


def _drop_useless(fit: Fit) -> None:
    """Leave out what others add, and what a backbone or a network without classes has no place for."""
    useless = [key for key in fit.state if key not in fit.shapes and is_useless(fit.network, key)]
    fit.state = {key: value for key, value in fit.state.items() if key not in useless}
    fit.ignored += useless


def is_useless(network: nn.Module, key: str) -> bool:
    """Whether a network like this one does without a tensor that it has no place for."""
    if isinstance(network, Features):
        return is_foreign(key) or key.startswith((*ENDS, "stages."))
    headless = isinstance(network, Network) and network.num_classes == 0
    return is_foreign(key) or key.startswith(("norms.", "head.fc.", "auxiliary.") if headless else "norms.")


def _keep_ends(fit: Fit) -> None:
    """Leave classifiers for other classes, and heads, auxiliary classifiers and norms that the file lacks, alone."""
    given = {key.rpartition(".")[0] for key in fit.state} | {key.partition(".")[0] for key in fit.state}
    for key, own in fit.network.state_dict().items():
        theirs, classifies = fit.state.get(key), key.startswith("head.fc.") or ".classify.fc." in key
        if theirs is not None:
            left = classifies and theirs.shape[1:] == own.shape[1:] and len(theirs) != len(own)
        else:
            part = key.rpartition(".")[0] if classifies else key.partition(".")[0]
            left = key.startswith(ENDS) and part not in given
        if left:
            fit.state[key] = own
            fit.left.append(key)


# --- the stem


def _fit_stem(fit: Fit) -> None:
    """Kernels that see the image, for another number of channels: summed to one, or repeated and averaged."""
    _merge_first_block(fit)
    for key in [key for key in fit.shapes if key.startswith(FIRST) and _is_adaptable(fit, key)]:
        fit.state[key] = adapted(fit.state[key], fit.network.in_channels)  # type: ignore[arg-type]
        fit.adapted.append(key)


def adapted(kernel: Tensor, channels: int) -> Tensor:
    """A kernel ``(O, I, kH, kW)`` for images of another number of channels, ``(O, channels, kH, kW)``, float64.

    For grey images the sum over its inputs, so that they are seen as if their channel were repeated; else its inputs
    in turns, scaled so that equal channels give what they gave.

    >>> adapted(torch.ones(1, 3, 1, 1), 6).flatten()
    tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    given = kernel.shape[1]
    if channels == 1:
        return kernel.double().sum(1, keepdim=True)
    return kernel.double().repeat(1, -(-channels // given), 1, 1)[:, :channels] * given / channels


def _is_adaptable(fit: Fit, key: str) -> bool:
    """Whether a tensor of the file is a kernel that differs from the network's in the channels of the image alone."""
    own, theirs, channels = fit.shapes.get(key, ()), fit.state.get(key), fit.network.in_channels
    if theirs is None or theirs.dim() != 4 or len(own) != 4:
        return False
    same = own[0] == theirs.shape[0] and own[2:] == theirs.shape[2:]
    return bool(same and own[1] == channels != theirs.shape[1])


def _fits(fit: Fit, key: str) -> bool:
    theirs = fit.state.get(key)
    return key.endswith("num_batches_tracked") or (theirs is not None and theirs.shape == fit.shapes.get(key))


@torch.no_grad()
def _merge_first_block(fit: Fit) -> None:
    """Where a block has channels of the image inside, or other branches for as many, take its merged kernel."""
    modules = fit.network.named_modules()
    blocks = ((path, m) for path, m in modules if isinstance(m, BranchedConv) and f"{path}.".startswith(FIRST))
    path, block = next(blocks, ("", None))
    main = "" if block is None else key_of(path, f"{block.main}.conv.weight")
    if block is None or not _is_adaptable(fit, main):
        return
    inner = {key.removeprefix(f"{path}."): value for key, value in fit.state.items() if key.startswith(f"{path}.")}
    names = {key_of(path, key) for key in inner.keys() | block.state_dict().keys()}
    if all(_fits(fit, key) or _is_adaptable(fit, key) for key in names):
        return
    theirs = _first_block(fit.network, path, fit.state[main].shape[1])
    if theirs is None or not _fill(theirs, inner):
        return
    weight, bias = equivalent_kernel(theirs)
    fit.state = {key: value for key, value in fit.state.items() if not key.startswith(f"{path}.")}
    fit.state |= {key_of(path, "merged.weight"): weight, key_of(path, "merged.bias"): bias}


def _first_block(network: nn.Module, path: str, in_channels: int) -> nn.Module | None:
    """The block that sees the image in a network like this one for images of other channels."""
    history = provenance_of(network)
    if history.network is None:
        return None
    like = create(history.network, **{**history.arguments, "in_channels": in_channels})
    return like.get_submodule(path).double().eval()


def _fill(block: nn.Module, state: State) -> bool:
    """Load a state if it is one of this block."""
    own = {key: value.shape for key, value in block.state_dict().items() if not key.endswith("num_batches_tracked")}
    if any(key not in state or state[key].shape != shape for key, shape in own.items()):
        return False
    block.load_state_dict({key: state[key] for key in own}, strict=False)
    return True
