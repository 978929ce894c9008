"""Mixed, a block whose branches are given by name and may come from several papers.

Branches that are convolutions aligned with the full kernel can be merged with each other, whatever their origin.

    y = Σ branch(x)        deploys as   K×K * x + b

    name          branch                     from
    kxk           BN(K×K * x)                all
    1x1           BN(1×1 * x)                RepVGG, DBB
    identity      BN(x)                      RepVGG, RepGhost
    skip          x                          RepGhost (repid)
    depth         BN(K×1×1 * x)              ACB in 3-D
    vertical      BN(K×1 * x)                ACB
    horizontal    BN(1×K * x)                ACB
    average       BN(AVG(BNᵖ(1×1 * x)))      DBB
    1x1_kxk       BN(K×K * BNᵖ(1×1 * x))     DBB
    small         BN(5×5 * x)                RepLKNet
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn

from unbranch.blocks.acb import AXES, line_branch
from unbranch.blocks.branched import BranchedConv, BranchOptions
from unbranch.blocks.dbb import avg_branch, conv1x1_kxk_branch
from unbranch.blocks.parts import Device, Size
from unbranch.blocks.spec import ConvSpec
from unbranch.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack

MakeBranch: TypeAlias = Callable[[ConvSpec], nn.Module]

BRANCHES: dict[str, MakeBranch] = {
    "kxk": ConvSpec.conv_bn,
    "1x1": lambda spec: spec.conv_bn((1,) * spec.ndim),
    "identity": ConvSpec.identity_bn,
    "skip": ConvSpec.identity,
    **{name: lambda spec, name=name: line_branch(spec, name) for name in AXES},  # type: ignore[misc]
    "average": avg_branch,
    "1x1_kxk": conv1x1_kxk_branch,
    "small": lambda spec: spec.conv_bn((5,) * spec.ndim),
}
"""Functions that make a branch, by name."""


class Mixed(BranchedConv):
    """Sum of named branches, ``(B, C_in, *size)`` to ``(B, C_out, *size')`` as nn.ConvNd.

    Other arguments are those of ``BranchedConv``.

    Args:
        branches: names from ``BRANCHES``, or a mapping from names to functions that return a branch for the block's
            ``ConvSpec``. The first branch with the full kernel is the ``main_branch``.

    Raises:
        InputError: if a branch is unknown or doesn't support the block's geometry, or if none has the full kernel.

    Example:
        >>> Mixed(8, 8, 3, padding=1, branches=("kxk", "identity", "vertical", "average")).branch_names
        ('kxk', 'identity', 'vertical', 'average')
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
        dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Device = None,
        dtype: torch.dtype | None = None, *, branches: Sequence[str] | Mapping[str, MakeBranch] = ("kxk",),
        **options: Unpack[BranchOptions],
    ) -> None:  # fmt: skip
        self._makers = dict(branches) if isinstance(branches, Mapping) else _by_name(branches)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, **options,
        )  # fmt: skip
        del self._makers  # these functions may not be picklable

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        made = {name: _made(name, make, spec) for name, make in self._makers.items()}
        whole = [name for name, branch in made.items() if _holds_kernel(branch, spec)]
        if not whole:
            raise InputError(f"`branches` must include one with the full kernel, such as 'kxk', got {', '.join(made)}")
        self.main_branch = whole[0]
        return made


def _by_name(names: Sequence[str]) -> dict[str, MakeBranch]:
    if len(set(names)) < len(names) or not set(names) <= set(BRANCHES):
        raise InputError(f"`branches` must be distinct names among {', '.join(BRANCHES)}, got {tuple(names)!r}")
    return {name: BRANCHES[name] for name in names}


def _made(name: str, make: MakeBranch, spec: ConvSpec) -> nn.Module:
    try:
        return make(spec)
    except InputError as error:
        raise InputError(f"branch {name!r}: {error}") from error


def _holds_kernel(branch: nn.Module, spec: ConvSpec) -> bool:
    children = dict(branch.named_children())
    return {"conv", "bn"} <= children.keys() and getattr(children["conv"], "kernel_size", None) == spec.kernel
