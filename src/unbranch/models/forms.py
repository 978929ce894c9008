"""The two forms of one network's weights: a merged layer's, written into the branches it came from, and back.

Between the forms stand names: those of the training form, and ``PATH.merged.weight`` and ``.bias`` for the layer that
a sum of branches makes; a convolution that has taken in its norm has ``conv.bias``, and no ``bn``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from unbranch.blocks import BranchedConv, Compactor, WindowPerceptron
from unbranch.convert import equivalent_kernel
from unbranch.errors import CheckpointError
from unbranch.graph.eval_view import training_only_modules

State = dict[str, Tensor]


def key_of(path: str, name: str) -> str:
    """The key of a tensor in a module."""
    return f"{path}.{name}".lstrip(".")


def is_pair(module: nn.Module) -> bool:
    """Whether a module is a bias-free convolution and its batch norm, and whatever follows."""
    parts = dict(module.named_children())
    conv, norm = parts.get("conv"), parts.get("bn")
    # where the norm comes first, as in a wide ResNet, it isn't the convolution's
    ordered = [name for name in parts if name in ("conv", "bn")] == ["conv", "bn"]
    return isinstance(module, nn.Sequential) and isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm) and ordered


def shapes_between(training: nn.Module) -> dict[str, torch.Size]:
    """Shapes of what a state may hold by the names between the forms: of both forms."""
    shapes = {key: value.shape for key, value in training.state_dict().items() if isinstance(value, Tensor)}
    for path, module in training.named_modules():
        name, kernel = _merged_layer(module)
        if kernel is not None:
            shapes |= {key_of(path, f"{name}.weight"): kernel.shape, key_of(path, f"{name}.bias"): kernel.shape[:1]}
    return shapes


def split(training: nn.Module, named: Mapping[str, Tensor]) -> State:
    """All tensors of the training form for a state in which some layers are merged.

    A merged layer goes into the main branch of its block, behind which a norm does nothing; the other branches start
    as what they add is nothing, or is taken out of the main one. Compactors that the state lacks are identities. A
    merged layer of another shape than the block's takes the main branch's place as it is, to be refused there.

    Raises:
        CheckpointError: if a merged layer is none that the branches can make.
    """
    state = dict(named)
    for path, module in training.named_modules():
        if isinstance(module, BranchedConv) and key_of(path, "merged.weight") in state:
            _replace(state, path, "merged", _branches(path, module, state))
        elif isinstance(module, WindowPerceptron) and key_of(path, "fc.bias") in state:
            _replace(state, path, "fc", _window(path, module, state))
        elif is_pair(module) and key_of(path, "conv.bias") in state and key_of(path, "bn.weight") not in state:
            bias = state.pop(key_of(path, "conv.bias"))
            _add(state, key_of(path, "bn"), _silent(module.get_submodule("bn"), bias))
        if isinstance(module, Compactor) and key_of(path, "conv.weight") not in state:
            identity = Compactor(len(module.mask), module.conv.weight.dim() - 2, diagonal=module.conv.groups > 1)
            _add(state, path, identity.state_dict())
    return state


def merged(plain: nn.Module, training: nn.Module) -> State:
    """The names between the forms for a collapsed network; norms that went into their neighbours do nothing.

    Args:
        training: the structure that the network was collapsed from, on any device; its values aren't read.

    Raises:
        CheckpointError: if the collapsed network has other layers than its training form would give.
    """
    state: State = {}
    taken: Tensor | None = None  # by a convolution, from a norm further on
    inside = [path for path, _ in training_only_modules(training)]
    for path, module in training.named_modules():
        if any(path == outer or path.startswith(f"{outer}.") for outer in inside):
            continue
        name, kernel = _merged_layer(module)
        if kernel is not None:
            layer = _counterpart(plain, path)
            if layer.weight.numel() != kernel.numel():
                raise CheckpointError(f"{path} has a kernel {tuple(layer.weight.shape)} where its training form has "
                                 f"{tuple(kernel.shape)}")  # fmt: skip
            bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
            _add(state, key_of(path, name), {"weight": layer.weight.detach().reshape(kernel.shape), "bias": bias})
            inside += [key_of(path, child) for child, _ in module.named_children() if child not in ("post", "act")]
        elif not module._modules:
            leaf, taken = _leaf(plain, path, module, taken)
            _add(state, path, leaf)
    if taken is not None:
        raise CheckpointError(
            "a convolution of the network has taken in a bias, for which its training form has no place"
        )
    return state


def separated(training: nn.Module, state: Mapping[str, Tensor]) -> State:
    """A state between the forms with the norms of plain units put back, which then do nothing but shift."""
    apart = dict(state)
    for path, module in training.named_modules():
        if is_pair(module) and key_of(path, "conv.bias") in apart:
            bias = apart.pop(key_of(path, "conv.bias"))
            _add(apart, key_of(path, "bn"), _silent(module.get_submodule("bn"), bias))
    return apart


def _add(state: State, path: str, tensors: Mapping[str, Tensor]) -> None:
    state.update({key_of(path, name): value for name, value in tensors.items()})


def _replace(state: State, path: str, name: str, tensors: State) -> None:
    for leaf in ("weight", "bias"):
        state.pop(key_of(path, f"{name}.{leaf}"), None)
    _add(state, path, tensors)


def _silent(norm: Any, bias: Tensor | None = None) -> State:
    """The state of a norm that only adds a bias."""
    if not norm.affine and bias is not None and bool(bias.any()):
        raise CheckpointError("a norm with affine=False can't hold the bias of a merged layer")
    ones = torch.ones(norm.num_features, dtype=torch.float64)
    shift = 0 * ones if bias is None else bias.double()
    return {
        **({"weight": (ones + norm.eps).sqrt(), "bias": shift} if norm.affine else {}),
        "running_mean": 0 * ones,
        "running_var": ones if norm.affine else ones - norm.eps,
        "num_batches_tracked": torch.zeros((), dtype=torch.int64),
    }


@torch.no_grad()
def _branches(path: str, block: BranchedConv, state: State) -> State:
    """The state of a block's branches that together make the merged layer."""
    kernel, bias = state[key_of(path, "merged.weight")].double(), state.get(key_of(path, "merged.bias"))
    trial: Any = copy.deepcopy(block).to(kernel.device).double().eval()
    trial.post = None
    main = trial.get_submodule(trial.main)
    if kernel.is_meta or main.conv.weight.shape != kernel.shape:
        return {**trial.state_dict(), f"{trial.main}.conv.weight": kernel}
    for norm in (m for m in trial.modules() if isinstance(m, _BatchNorm)):
        norm.load_state_dict(_silent(norm))
    for name in trial.branch_names:
        if name != trial.main:
            _switch_off(trial.get_submodule(name))
    main.conv.weight.zero_()
    others, shift = equivalent_kernel(trial)
    main.conv.weight.copy_(kernel - others)
    main.bn.bias.copy_((torch.zeros_like(shift) if bias is None else bias.double()) - shift)
    return dict(trial.state_dict())


def _switch_off(branch: nn.Module) -> None:
    """Set γ of the norm that closes a branch to zero, if one does."""
    norms = [m for m in branch.modules() if isinstance(m, _BatchNorm)]
    if norms and norms[-1].affine:
        nn.init.zeros_(norms[-1].weight)


def _window(path: str, module: WindowPerceptron, state: State) -> State:
    sets = module.shape[0]
    if state[key_of(path, "fc.bias")].shape != module.fc.weight.shape[:1]:
        return {**module.state_dict(), "fc.weight": state[key_of(path, "fc.weight")]}
    bias = state[key_of(path, "fc.bias")].reshape(sets, -1)  # (S, h*w)
    if not torch.allclose(bias, bias[:, :1].expand_as(bias), rtol=1e-6, atol=1e-7):
        raise CheckpointError(
            f"the bias of {path}.fc differs within a window, which the branches can't make: it was trained after it "
            "was merged"
        )
    trial: Any = copy.deepcopy(module).cpu().double()
    for norm in (m for m in trial.modules() if isinstance(m, _BatchNorm)):
        norm.load_state_dict(_silent(norm))
    for name in trial.conv_names:
        _switch_off(trial.get_submodule(name))
    trial.fc_bn.load_state_dict(_silent(trial.fc_bn, bias[:, 0]))
    return {**trial.state_dict(), "fc.weight": state[key_of(path, "fc.weight")]}


def _merged_layer(module: nn.Module) -> tuple[str, Tensor | None]:
    """What a module collapses into: a name between the forms and the kernel's shape, if it is one layer."""
    if isinstance(module, BranchedConv):
        return "merged", module.get_submodule(module.main).get_submodule("conv").weight  # type: ignore[return-value]
    if isinstance(module, WindowPerceptron):
        return "fc", module.fc.weight
    if is_pair(module):
        return "conv", module.get_submodule("conv").weight  # type: ignore[return-value]
    return "", None


def _counterpart(plain: nn.Module, path: str) -> Any:
    """The layer of a collapsed network that stands for the module at a path of its training form."""
    found = next(m for m in _upwards(plain, path) if m is not None)
    if isinstance(found, BranchedConv):  # of one branch, which could be merged where it is
        found = found.get_submodule(found.main)
    layers = [m for m in found.modules() if isinstance(m, _ConvNd | nn.Linear)]
    own = getattr(found, "conv", None)
    layer = own if isinstance(own, _ConvNd) else layers[0] if len(layers) == 1 else None
    if layer is None:
        raise CheckpointError(
            f"the network has no layer that stands for {path}: was it changed after it was collapsed?"
        )
    return layer


def _upwards(network: nn.Module, path: str) -> Iterator[nn.Module | None]:
    """The module at a path, and those around it; None where there is none."""
    while True:
        try:
            yield network.get_submodule(path)
        except AttributeError:
            yield None
        if not path:
            return
        path = path.rpartition(".")[0]


def _leaf(
    plain: nn.Module, path: str, module: nn.Module, taken: Tensor | None
) -> tuple[Mapping[str, Tensor], Tensor | None]:
    """The state of a leaf that is no part of anything merged, and a bias that waits for the norm it came from.

    Where norms come before convolutions, a norm goes into the convolution before it.
    """
    own, found = module.state_dict(), next(iter(_upwards(plain, path)))
    if isinstance(module, _BatchNorm) and not isinstance(found, _BatchNorm):
        fits = taken is not None and len(taken) == module.num_features
        return _silent(module, taken if fits else None), None if fits else taken
    theirs = {} if found is None else found.state_dict()
    if own.keys() - theirs.keys():
        raise CheckpointError(
            f"the network has no layer that stands for {path}: was it changed after it was collapsed?"
        )
    if own and "bias" in theirs.keys() - own.keys() and bool(theirs["bias"].any()):
        if taken is not None:
            raise CheckpointError(f"{path} has taken in a bias, for which its training form has no place")
        taken = theirs["bias"]
    return {name: theirs[name] for name in own}, taken
