"""A canonical state as the state dict of one form: of the training form, or of the collapsed model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from unbranch.blocks import BranchedConv, Compactor, WindowPerceptron
from unbranch.blocks.layers import Scale
from unbranch.convert import collapse, equivalent_kernel
from unbranch.errors import CheckpointError
from unbranch.weights.canonical import Counterpart, State, counterparts, identity_norm_state, is_pair, key_of
from unbranch.weights.fill import fill
from unbranch.weights.target import Target, training_form

# --- training form


def to_training_state(training: nn.Module, canonical: Mapping[str, Tensor]) -> State:
    """Return a state dict of the training form for a canonical state, in which some layers may be merged.

    A merged kernel goes into the main branch of its block, behind a norm that only adds the bias. The other branches
    start with γ = 0 or, where they can't, what they add is subtracted from the main branch. Compactors that the state
    lacks are identities. A merged kernel of another shape than the block's is passed on as the main branch's, so that
    ``fill`` reports it.

    Raises:
        CheckpointError: if a merged layer is none that the branches can make.
    """
    state = dict(canonical)
    for path, module in training.named_modules():
        if isinstance(module, BranchedConv) and key_of(path, "merged.weight") in state:
            _replace(state, path, "merged", _branch_state(path, module, state))
        elif isinstance(module, WindowPerceptron) and key_of(path, "fc.bias") in state:
            _replace(state, path, "fc", _window_state(path, module, state))
    return with_norms(training, _identity_compactors(training, state) | state)


def _identity_compactors(model: nn.Module, state: Mapping[str, Tensor]) -> State:
    """Return the states of compactors that do nothing, for those that a state lacks."""
    found: State = {}
    for path, module in model.named_modules():
        if isinstance(module, Compactor) and key_of(path, "mask") not in state:
            found[key_of(path, "mask")] = torch.ones_like(module.mask, device="cpu")
            if isinstance(module.conv, _ConvNd):  # not merged
                kernel = nn.init.dirac_(torch.empty(module.conv.weight.shape), module.conv.groups)
                found[key_of(path, "conv.weight")] = kernel
    return found


def with_norms(training: nn.Module, canonical: Mapping[str, Tensor]) -> State:
    """Put norms that only shift behind plain convolutions whose norms were fused."""
    state = dict(canonical)
    for path, module in training.named_modules():
        bias, weight = key_of(path, "conv.bias"), key_of(path, "bn.weight")
        if is_pair(module) and bias in state and weight not in state:
            _add(state, key_of(path, "bn"), identity_norm_state(module.get_submodule("bn"), state.pop(bias)))
    return state


def _add(state: State, path: str, tensors: Mapping[str, Tensor]) -> None:
    state.update({key_of(path, name): value for name, value in tensors.items()})


def _replace(state: State, path: str, name: str, tensors: State) -> None:
    for leaf in ("weight", "bias"):
        state.pop(key_of(path, f"{name}.{leaf}"), None)
    _add(state, path, tensors)


@torch.no_grad()
def _branch_state(path: str, block: BranchedConv, state: State) -> State:
    """Return the state of a block's branches whose sum is the merged layer."""
    kernel, bias = state[key_of(path, "merged.weight")].double(), state.get(key_of(path, "merged.bias"))
    trial: Any = copy.deepcopy(block).to(kernel.device).double().eval()
    trial.post = None
    main = trial.get_submodule(trial.main_branch)
    if kernel.is_meta or main.conv.weight.shape != kernel.shape:
        return {**trial.state_dict(), f"{trial.main_branch}.conv.weight": kernel}
    for norm in (m for m in trial.modules() if isinstance(m, _BatchNorm)):
        norm.load_state_dict(identity_norm_state(norm))
    for name in trial.branch_names:
        if name != trial.main_branch:
            _switch_off(trial.get_submodule(name))
    if isinstance(main.bn, Scale):
        nn.init.ones_(main.bn.weight)
    main.conv.weight.zero_()
    others, shift = equivalent_kernel(trial)
    main.conv.weight.copy_(kernel - others)
    norm = trial.closing if isinstance(main.bn, Scale) else main.bn
    if norm is not trial.closing:
        norm.bias.copy_((torch.zeros_like(shift) if bias is None else bias.double()) - shift)
    elif bias is not None:
        norm.bias.copy_(bias.double())
    return dict(trial.state_dict())


def _switch_off(branch: nn.Module) -> None:
    """Set γ of the norm that closes a branch to zero, if there is one."""
    norms: list[Any] = [m for m in branch.modules() if isinstance(m, _BatchNorm | Scale)]
    if norms and (isinstance(norms[-1], Scale) or norms[-1].affine):
        nn.init.zeros_(norms[-1].weight)


def _window_state(path: str, module: WindowPerceptron, state: State) -> State:
    sets = module.shape[0]
    if state[key_of(path, "fc.bias")].shape != module.fc.weight.shape[:1]:
        return {**module.state_dict(), "fc.weight": state[key_of(path, "fc.weight")]}
    bias = state[key_of(path, "fc.bias")].reshape(sets, -1)  # (S, h*w)
    if not torch.allclose(bias, bias[:, :1].expand_as(bias), rtol=1e-6, atol=1e-7):
        raise CheckpointError(
            f"the bias of {path}.fc differs within a window, and the branches can only add one number to each: it was "
            "trained after it was merged; load it into the collapsed model"
        )
    trial: Any = copy.deepcopy(module).cpu().double()
    for norm in (m for m in trial.modules() if isinstance(m, _BatchNorm)):
        norm.load_state_dict(identity_norm_state(norm))
    for name in trial.conv_names:
        _switch_off(trial.get_submodule(name))
    trial.fc_bn.load_state_dict(identity_norm_state(trial.fc_bn, bias[:, 0]))
    return {**trial.state_dict(), "fc.weight": state[key_of(path, "fc.weight")]}


# --- collapsed model


def to_deploy_state(target: Target, canonical: Mapping[str, Tensor], skipped: Collection[str], origin: str) -> State:
    """Return a state dict of a collapsed model for a canonical state.

    Layers that are merged in the state are renamed, whatever their values. Only if the state has branches or norms
    that the model has no longer, those are merged, by ``collapse``.

    Args:
        target: a collapsed model.
        canonical: its weights in the training form, the deploy form, or a form between.
        skipped: names of the training form that the state has no values for, and needs none.
        origin: path of the file, for messages.

    Raises:
        CheckpointError: if the state has branches to merge and doesn't fit the training form.
    """
    parts = list(counterparts(target.model, target.training))
    if not any(_needs_merging(part, canonical) for part in parts):
        return _identity_compactors(target.model, canonical) | _renamed(parts, canonical)
    dtype = next(target.model.parameters()).dtype
    training = training_form(target.model).to(torch.promote_types(dtype, torch.float32))
    state = dict(canonical)
    for part in parts:
        if part.name and _is_merged(part, state) and f"{part.layer_path}.".startswith(f"{part.path}."):
            _install(training, target.model, part, state)
    fill(training, to_training_state(training, state), origin, skipped=skipped)
    return dict(collapse(training).state_dict())


def _is_merged(part: Counterpart, state: Mapping[str, Tensor]) -> bool:
    """Whether a state has a part that can be merged as one layer already."""
    return part.key("bias" if part.name != "merged" else "weight") in state and not (
        part.name == "conv" and key_of(part.path, "bn.weight") in state
    )


def _needs_merging(part: Counterpart, state: Mapping[str, Tensor]) -> bool:
    """Whether a state has branches or a norm that the collapsed model has no longer."""
    if not part.name:
        return part.is_fused_norm and part.key("running_var") in state and not _is_identity(part, state)
    kept = (f"{part.name}.weight", "post.", "act.")  # which the collapsed model has, too
    branches = (key for key in part.module.state_dict() if not key.startswith(kept))
    return not _is_merged(part, state) and any(key_of(part.path, key) in state for key in branches)


def _is_identity(part: Counterpart, state: Mapping[str, Tensor]) -> bool:
    """Whether a norm in a state does nothing, exactly."""
    identity = identity_norm_state(part.module)
    values = {name: state.get(part.key(name)) for name in identity if name != "num_batches_tracked"}
    return all(
        value is not None and value.shape == identity[name].shape and torch.equal(value, identity[name].to(value))
        for name, value in values.items()
    )


def _renamed(parts: list[Counterpart], canonical: Mapping[str, Tensor]) -> State:
    rest = dict(canonical)
    state: State = {}
    for part in parts:
        if part.name:
            state |= _layer_state(part, rest)
        elif part.is_fused_norm:
            for name in identity_norm_state(part.module):
                rest.pop(part.key(name), None)
        elif part.layer is not None:
            own = {name: rest.pop(part.key(name)) for name in part.module.state_dict() if part.key(name) in rest}
            _add(state, part.layer_path, own)
            if "bias" in part.layer.state_dict().keys() - part.module.state_dict().keys():
                _add(state, part.layer_path, {"bias": torch.zeros_like(part.layer.bias)})
    return state | rest  # what is left over is reported by fill


def _layer_state(part: Counterpart, rest: State) -> State:
    """Take a merged layer out of a canonical state, as the collapsed model has it."""
    weight, bias = rest.pop(part.key("weight"), None), rest.pop(part.key("bias"), None)
    own = part.layer.weight.shape
    state = {} if weight is None else {"weight": weight.reshape(own) if weight.shape == part.shape else weight}
    if bias is not None and (part.layer.bias is not None or bool(bias.any())):
        state["bias"] = bias
    elif part.layer.bias is not None and weight is not None:
        state["bias"] = torch.zeros_like(part.layer.bias)
    return {key_of(part.layer_path, name): value for name, value in state.items()}


def _install(training: nn.Module, plain: nn.Module, part: Counterpart, state: State) -> None:
    """Put the single layer of a collapsed model in place of its branches, and rename its tensors in the state."""
    module: Any = copy.deepcopy(plain.get_submodule(part.path)).eval()
    layer = module.get_submodule(part.layer_path.removeprefix(part.path).lstrip("."))
    if layer.bias is None and part.key("bias") in state:
        layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))
    state |= _layer_state(replace(part, layer=layer), state)
    like = next(training.parameters())
    training.set_submodule(part.path, module.to(like.device, like.dtype))
