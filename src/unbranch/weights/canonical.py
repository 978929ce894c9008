"""The canonical state: one set of names for the weights of a model in either form.

It has the names of the training form; a layer that a sum of branches was merged to is ``PATH.merged.weight`` and
``PATH.merged.bias``, the matrix of a RepMLP has ``PATH.fc.bias``, and a convolution that has its norm fused has
``conv.bias`` and no ``bn``. Layouts map published names to these, and the two forms are made of them:

    published names ── layout ──► canonical state ── to_training_state ──► training form
                                        ▲ │
                     to_canonical_state │ └──────── to_deploy_state ─────► collapsed model
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from unbranch.blocks import BranchedConv, WindowPerceptron
from unbranch.errors import CheckpointError
from unbranch.graph.eval_view import training_only_modules

State: TypeAlias = dict[str, Tensor]


def key_of(path: str, name: str) -> str:
    """Return the key of a tensor in a module."""
    return f"{path}.{name}".lstrip(".")


def is_pair(module: nn.Module) -> bool:
    """Whether a module is a convolution without bias and its batch norm, and whatever follows them."""
    parts = dict(module.named_children())
    conv, norm = parts.get("conv"), parts.get("bn")
    # where the norm comes first, as in a wide ResNet, it isn't the convolution's
    ordered = [name for name in parts if name in ("conv", "bn")] == ["conv", "bn"]
    return isinstance(module, nn.Sequential) and isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm) and ordered


def merged_layer(module: nn.Module) -> tuple[str, Tensor | None]:
    """Return what a module collapses to, if it is one layer: its canonical name and the kernel, whose shape counts."""
    if isinstance(module, BranchedConv):
        return "merged", module.get_submodule(module.main_branch).get_submodule("conv").weight  # type: ignore[return-value]
    if isinstance(module, WindowPerceptron):
        return "fc", module.fc.weight
    if is_pair(module):
        return "conv", module.get_submodule("conv").weight  # type: ignore[return-value]
    return "", None


def canonical_shapes(training: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of all that a canonical state may hold, in either form, by name."""
    shapes = {key: value.shape for key, value in training.state_dict().items() if isinstance(value, Tensor)}
    for path, module in training.named_modules():
        name, kernel = merged_layer(module)
        if kernel is not None:
            shapes |= {key_of(path, f"{name}.weight"): kernel.shape, key_of(path, f"{name}.bias"): kernel.shape[:1]}
    return shapes


def identity_norm_state(norm: Any, bias: Tensor | None = None) -> State:
    """Return the state of a batch norm that only adds a bias in evaluation mode, float64.

    Args:
        norm: the batch norm, for its size and ε.
        bias: ``(C,)``; zeros if None.

    Raises:
        CheckpointError: if the norm has no affine parameters and the bias isn't zero.
    """
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


# --- parts of the training form and their layers in the collapsed model


@dataclass(frozen=True)
class Counterpart:
    """A part of the training form and its layer in the collapsed model.

    Args:
        path: of the module in the training form.
        module: there.
        name: canonical name of the layer that it was merged to; empty for a module that isn't merged.
        shape: of the canonical kernel, for a merged layer.
        layer_path, layer: in the collapsed model; None where there is no such module any more.
    """

    path: str
    module: nn.Module
    name: str
    shape: torch.Size
    layer_path: str
    layer: Any

    @property
    def is_fused_norm(self) -> bool:
        """Whether this is a batch norm that the collapsed model has no longer."""
        return isinstance(self.module, _BatchNorm) and not isinstance(self.layer, _BatchNorm)

    def key(self, leaf: str) -> str:
        """Return the canonical key of a tensor, ``weight`` or ``bias`` for a merged layer."""
        return key_of(self.path, f"{self.name}.{leaf}".lstrip("."))


def counterparts(plain: nn.Module, training: nn.Module) -> Iterator[Counterpart]:
    """Pair each merged layer and each other leaf of a training form with its counterpart in the collapsed model.

    Args:
        plain: the collapsed model.
        training: the structure that it was collapsed from, on any device.

    Raises:
        CheckpointError: if a layer of the collapsed model is missing.
    """
    inside = [path for path, _ in training_only_modules(training)]
    modules = dict(plain.named_modules())
    for path, module in training.named_modules():
        if any(path == outer or path.startswith(f"{outer}.") for outer in inside):
            continue
        name, kernel = merged_layer(module)
        if kernel is not None:
            yield Counterpart(path, module, name, kernel.shape, *_layer_at(modules, path))
            inside += [key_of(path, child) for child, _ in module.named_children() if child not in ("post", "act")]
        elif not module._modules:
            yield Counterpart(path, module, "", torch.Size(), path, modules.get(path))


def _layer_at(modules: Mapping[str, nn.Module], path: str) -> tuple[str, Any]:
    """Return the linear layer of a collapsed model that stands for the module at a path, and its own path."""
    where = path
    while where not in modules:  # merged into what holds it
        where = where.rpartition(".")[0]
    found = modules[where]
    if isinstance(found, BranchedConv):  # of one branch, which could be merged where it is
        where, found = key_of(where, found.main_branch), found.get_submodule(found.main_branch)
    own = getattr(found, "conv", None)
    if isinstance(own, _ConvNd):
        return key_of(where, "conv"), own
    layers = [(name, m) for name, m in found.named_modules() if isinstance(m, _ConvNd | nn.Linear)]
    if len(layers) != 1:
        raise _unmatched(path)
    return key_of(where, layers[0][0]).rstrip("."), layers[0][1]


def _unmatched(path: str) -> CheckpointError:
    return CheckpointError(f"the model has no layer that stands for {path}: was it changed after it was collapsed?")


def to_canonical_state(plain: nn.Module, training: nn.Module) -> State:
    """Return the canonical state of a collapsed model; norms that were fused into their neighbours do nothing there.

    Args:
        plain: the collapsed model.
        training: the structure that it was collapsed from, on any device; its values aren't read.

    Raises:
        CheckpointError: if the collapsed model has other layers than its training form would give.
    """
    state: State = {}
    pending: Tensor | None = None  # a bias that a convolution got from a norm further on, as in a wide ResNet
    for part in counterparts(plain, training):
        if part.name:
            state |= _merged_tensors(part)
        elif part.is_fused_norm:
            fits = pending is not None and len(pending) == part.module.num_features
            identity = identity_norm_state(part.module, pending if fits else None)
            state |= {part.key(name): value for name, value in identity.items()}
            pending = None if fits else pending
        else:
            state |= {part.key(name): value for name, value in _leaf_tensors(part).items()}
            pending = _gained_bias(part, pending)
    if pending is not None:
        raise CheckpointError("a convolution of the model has a bias for which its training form has no place")
    return state


def _merged_tensors(part: Counterpart) -> State:
    weight, bias = part.layer.weight, part.layer.bias
    if weight.numel() != part.shape.numel():
        raise CheckpointError(
            f"{part.path} has a kernel {tuple(weight.shape)} where its training form has {tuple(part.shape)}"
        )
    shift = torch.zeros(len(weight)) if bias is None else bias.detach()
    return {part.key("weight"): weight.detach().reshape(part.shape), part.key("bias"): shift}


def _leaf_tensors(part: Counterpart) -> Mapping[str, Tensor]:
    own, theirs = part.module.state_dict(), {} if part.layer is None else part.layer.state_dict()
    if own.keys() - theirs.keys():
        raise _unmatched(part.path)
    return {name: theirs[name] for name in own}


def _gained_bias(part: Counterpart, pending: Tensor | None) -> Tensor | None:
    """Return the bias that is waiting for its norm, behind a layer that may have got one."""
    bias: Tensor | None = None if part.layer is None else part.layer.state_dict().get("bias")
    own = part.module.state_dict()
    if bias is None or not own or "bias" in own or not bool(bias.any()):
        return pending
    if pending is not None:
        raise CheckpointError(f"{part.path} has a bias for which its training form has no place")
    return bias
