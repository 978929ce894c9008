"""Make the block that replaces a convolution and its norm, with the same function."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbranch.algebra import batch_norm_scale_shift
from unbranch.blocks import CONVOLUTIONS, BranchedConv, Compactor, initialise
from unbranch.blocks.dilated import BRANCHES as DILATED
from unbranch.convert import equivalent_kernel
from unbranch.convert.plan.emit import memory_format_of
from unbranch.convert.rewrite.rewrite import with_rest
from unbranch.errors import InputError
from unbranch.grids import NORM_LAYERS, is_depthwise
from unbranch.rules import rule_of_module

BLOCKS: dict[str, Callable[..., nn.Module]] = {
    **{name: block for name, block in CONVOLUTIONS.items() if name != "qarepvgg"},  # its norm reads all branches
    "compactor": Compactor,
}
STARTS = ("zero", "compensated")
_SMALLEST_SCALE = 1e-3  # of the largest scale of a norm: dividing by a smaller one would amplify rounding


def skip_reason(name: str, conv: Any, options: dict[str, Any]) -> str | None:
    """Return why a block would add nothing to a convolution, or None if it would add something."""
    taps = [k for k in conv.kernel_size if k > 1]
    if name in ("dbb", "repvgg", "mobileone", "orepa") and not taps:
        return "its kernel has one tap"
    if name == "acb" and len(taps) < 2:
        return "its kernel is a line or a point already"
    if name == "compactor" and conv.groups > 1:
        return "it is grouped; unbranch.prune.insert_compactors inserts compactors where groups need them"
    small = options.get("small_kernel", 5)
    if name == "replk" and isinstance(small, int) and max(conv.kernel_size) <= small:
        return f"its kernel isn't larger than the small one, {small}"
    if name == "dilated" and "branches" not in options and set(conv.kernel_size) - set(DILATED):
        return "the paper has no branches for its kernel; pass branches="
    return None


def make_block(
    kind: Callable[..., nn.Module], conv: Any, norm: nn.Module | None, *, start: str | None, options: dict[str, Any],
    memo: dict[int, Any],
) -> nn.Module:  # fmt: skip
    """Return a block that computes ``norm(conv(x))``, with copies of both in its main branch.

    Args:
        kind: class of the block, or a function with its signature.
        conv: convolution to replace.
        norm: batch norm that reads it, if any.
        start: how the added branches start, ``"zero"`` or ``"compensated"``; None leaves them initialised, for
            weights that are loaded afterwards.
        options: further arguments of ``kind``.
        memo: of ``copy.deepcopy``.

    Raises:
        InputError: if the block can't replace this convolution.
    """
    if kind is Compactor:
        return _with_compactor(conv, norm, options, memo)
    defaults: dict[str, Any] = {}
    if isinstance(norm, _BatchNorm):
        defaults = {"eps": norm.eps, "momentum": 0.1 if norm.momentum is None else norm.momentum}
    weight = conv.weight
    block = kind(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
        True, conv.padding_mode, weight.device, weight.dtype, ndim=weight.dim() - 2, **{**defaults, **options},
    )  # fmt: skip
    if isinstance(block, BranchedConv) and block.online is not None and block.post is None:
        return _online_block(block, conv, norm, start, memo)
    if not isinstance(block, BranchedConv) or block.post is not None or block.closing is not None:
        raise InputError(f"the block must be a plain sum of branches, got a {type(block).__name__} with more than that")
    if start == "zero":
        initialise(block, "single")
    _fill_main_branch(block, conv, norm, memo)
    if start is not None and not weight.is_meta:
        _compensate(block)
    return _like(block, conv, norm)


@torch.no_grad()
def _online_block(
    block: BranchedConv, conv: Any, norm: nn.Module | None, start: str | None, memo: dict[int, Any]
) -> nn.Module:  # fmt: skip
    """The same for a block that merges its branches in each forward: the norm comes after their sum.

    Raises:
        InputError: if the convolution has a bias, or the block a norm in its main branch as well.
    """
    if conv.bias is not None:
        raise InputError("it has a bias, and the kernel of a block that merges its branches online has none")
    if start is not None:
        initialise(block, "single")  # the factors of the added branches are 0
    main: Any = block.get_submodule(block.main_branch)
    if main.conv.weight.shape != conv.weight.shape:
        raise InputError(f"the main branch of {type(block).__name__} has another kernel than the convolution")
    main.conv.weight = copy.deepcopy(conv.weight, memo)
    block.closing = None if norm is None else plain_norm(norm, memo)
    if start == "compensated" and not conv.weight.is_meta:
        initialise(block, 1.0)
        main.conv.weight.sub_(block.kernel() - main.conv.weight)
    return _like(block, conv, norm)


def _fill_main_branch(block: BranchedConv, conv: Any, norm: nn.Module | None, memo: dict[int, Any]) -> None:
    main: Any = block.get_submodule(block.main_branch)
    if main.conv.weight.shape != conv.weight.shape:
        raise InputError(f"the main branch of {type(block).__name__} has another kernel than the convolution")
    main.conv.weight = copy.deepcopy(conv.weight, memo)
    main.conv.bias = copy.deepcopy(conv.bias, memo)
    main.bn = nn.Identity() if norm is None else plain_norm(norm, memo)


def plain_norm(norm: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a copy of a norm without the activation that some norm classes apply."""
    if type(norm).__module__.startswith("torch.") or not isinstance(norm, _BatchNorm):
        return copy.deepcopy(norm, memo)
    kinds: tuple[Any, ...] = (nn.SyncBatchNorm, *NORM_LAYERS.values())
    kind = next(k for k in kinds if isinstance(norm, k))
    bare: nn.Module = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name in (*norm._parameters, *norm._buffers):
        setattr(bare, name, copy.deepcopy(getattr(norm, name), memo))
    return bare


def remainder_of(norm: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return what replaces a norm that moved into a block: an identity, or the activation that its class applies.

    An activation that does nothing becomes an empty nn.Sequential, not an nn.Identity: the converter replaces a module
    as a whole where only identities follow, and here something else may follow.
    """
    rest = with_rest(None, norm, memo)
    rule = rule_of_module(norm)
    return nn.Sequential() if rule is not None and rule.epilogue and isinstance(rest, nn.Identity) else rest


@torch.no_grad()
def _compensate(block: BranchedConv) -> None:
    """Subtract from the main branch what the added branches compute.

    Raises:
        InputError: if the norm of the main branch scales a channel by almost zero.
    """
    main: Any = block.get_submodule(block.main_branch)
    weight, bias, norm = main.conv.weight, main.conv.bias, main.bn
    main.conv.weight, main.conv.bias, main.bn = nn.Parameter(torch.zeros_like(weight)), None, nn.Identity()
    kernel, shift = equivalent_kernel(block)
    main.conv.weight, main.conv.bias, main.bn = weight, bias, norm
    if not kernel.any() and not shift.any():
        return
    if not isinstance(norm, nn.Identity) and norm.bias is None:
        raise InputError("its norm has no shift (affine=False) that could compensate the branches")
    scale = _scale_of(norm, shift)
    if float(scale.abs().min()) <= _SMALLEST_SCALE * float(scale.abs().max()):
        raise InputError("its norm scales a channel by almost zero, so the branches can't be compensated before it")
    weight.sub_((kernel / scale.reshape(-1, *(1,) * (kernel.dim() - 1))).to(weight.dtype))
    if not isinstance(norm, nn.Identity):
        norm.bias.sub_(shift)
    elif bias is None:
        main.conv.bias = nn.Parameter(-shift)
    else:
        bias.sub_(shift)


def _scale_of(norm: Any, like: Tensor) -> Tensor:
    """Return the factor of a norm for each channel, ``(C,)``."""
    if isinstance(norm, nn.Identity):
        return torch.ones_like(like)
    n = norm
    return batch_norm_scale_shift(n.running_mean, n.running_var, n.weight, n.bias, n.eps, dtype=torch.float64)[0]


def _with_compactor(conv: Any, norm: nn.Module | None, options: dict[str, Any], memo: dict[int, Any]) -> nn.Module:
    weight = conv.weight
    given: dict[str, Any] = {"diagonal": is_depthwise(conv), **options}
    compactor = Compactor(conv.out_channels, weight.dim() - 2, weight.device, weight.dtype, **given)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=copy.deepcopy(conv, memo))
    if norm is not None:
        layers["bn"] = plain_norm(norm, memo)
    layers["compactor"] = compactor
    return _like(nn.Sequential(layers), conv, norm)


def _like(block: nn.Module, conv: Any, norm: nn.Module | None) -> nn.Module:
    """Give a block the memory format of the convolution, and the mode of the norm: frozen statistics stay frozen."""
    if (layout := memory_format_of(conv.weight)) != torch.contiguous_format:
        block = block.to(memory_format=layout)
    return block.train(conv.training if norm is None else norm.training)
