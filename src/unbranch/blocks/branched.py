"""The sum of branches that stands for one convolution: what all blocks of this kind have in common.

    y = post( Σ branch(x) )        deploys as   post( K×K * x + b )

A block says which branches it has, and which of them holds the whole kernel. Its arguments and attributes are those
of nn.Conv2d, so that it can stand where a convolution stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbranch.blocks.fused_training import fused_sum
from unbranch.blocks.layers import Scale
from unbranch.blocks.online_kernel import online_kernel
from unbranch.blocks.parts import Activation, Device, Size, on, through
from unbranch.blocks.spec import ConvSpec, resolve_padding
from unbranch.errors import InputError
from unbranch.grids import CONV_FUNCTIONS, CONV_LAYERS, per_axis

WAYS = ("single", "zero", "identity")


class BranchOptions(TypedDict, total=False):
    """Keyword arguments that every ``BranchedConv`` takes."""

    ndim: int
    activation: Activation
    init: float | str
    affine: bool
    eps: float
    momentum: float
    online: bool


class BranchedConv(nn.Module):
    """Base of the blocks: named branches, summed; ``(B, C_in, *size)`` to ``(B, C_out, *size')`` as nn.Conv2d.

    A subclass has ``make_branches``, and names in ``main`` the branch that holds the whole kernel: an
    ``nn.Sequential`` with the children ``conv`` and ``bn``. Branches are children of the block under their names;
    ``branch_names`` lists them.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, device, dtype: as
            for nn.Conv2d. A padding other than zeros is done once for all branches.
        bias: accepted so that a block can take a convolution's arguments, and without effect: the norms shift.
        ndim: dimensions of the grid, 1, 2 or 3.
        activation: called without arguments to make the module after the sum.
        init: how the norms that close the branches start, see ``initialise``.
        affine, eps, momentum: of the batch norms.
        online: train the merged kernel: scales stand where the branches have their batch norms, the kernel of their
            sum is computed in each step and used in one convolution, and one batch norm is behind it. The children
            keep their names, so that a scale is called ``bn``. Hu et al., CVPR 2022, see ``OREPA``.

    Raises:
        InputError: if the arguments make no convolution, or none that the block can stand for.

    >>> class Twice(BranchedConv):
    ...     main = "first"
    ...     def make_branches(self, spec):
    ...         return {"first": spec.conv_bn(), "second": spec.conv_bn()}
    >>> Twice(3, 8, 3, padding=1)(torch.zeros(1, 3, 6, 7)).shape
    torch.Size([1, 8, 6, 7])
    """

    main: str
    fused_in_training = False  # see fuse_branches_in_training

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
        dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros",  # noqa: ARG002
        device: Device = None, dtype: torch.dtype | None = None, *, ndim: int = 2, activation: Activation = None,
        init: float | str = 1.0, affine: bool = True, eps: float = 1e-5, momentum: float = 0.1, online: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if ndim not in CONV_LAYERS:
            raise InputError(f"`ndim` must be 1, 2 or 3, got {ndim}")
        self.ndim, self.in_channels, self.out_channels = ndim, in_channels, out_channels
        self.kernel_size = per_axis(kernel_size, ndim, "kernel_size", 1)
        self.stride = per_axis(stride, ndim, "stride", 1)
        self.dilation = per_axis(dilation, ndim, "dilation", 1)
        amounts = resolve_padding(padding, self.kernel_size, self.stride, self.dilation)
        self.padding = tuple(before for before, _ in amounts)  # "same" with an even span pads one more after
        self.groups, self.padding_mode = groups, padding_mode
        self.pad, spec = ConvSpec(
            in_channels, out_channels, self.kernel_size, self.stride, (0,) * ndim, self.dilation, groups,
            affine, eps, momentum, device, dtype,
        ).padded_by(padding_mode, amounts)  # fmt: skip
        self.online = replace(spec, online=True) if online else None
        branches = self.make_branches(self.online or spec)
        self.branch_names = tuple(branches)
        for name, branch in branches.items():
            if name in ("post", "closing") or hasattr(self, name):
                raise InputError(f"a branch can't have the name {name!r}, which means something else on the block")
            self.add_module(name, branch)
        self.closing = self.make_closing(spec) or (spec.norm(out_channels) if online else None)
        self.post = None if activation is None else on(activation(), device, dtype)
        initialise(self, init)
        if online:
            self.kernel()  # raises where a branch has none

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        """Modules by name, each from ``(B, C_in, *size)`` to ``(B, C_out, *size')``, in the order of summation."""
        raise NotImplementedError(f"{type(self).__name__} doesn't say which branches it has")

    def make_closing(self, spec: ConvSpec) -> nn.Module | None:  # noqa: ARG002
        """A batch norm behind the sum, for blocks that have one."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        y = self.summed(through(self.pad, x), self.branch_names)
        return through(self.post, through(self.closing, y))

    def summed(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """``Σ branch(x)`` of the branches that are named, at least one."""
        branches = [self.get_submodule(name) for name in names]
        if self.online is not None:
            spec = self.online
            conv = CONV_FUNCTIONS[self.ndim]
            return conv(x, self.kernel(), None, spec.stride, spec.padding, spec.dilation, spec.groups)
        if self.fused_in_training and self.training:
            return fused_sum(branches, x, self.groups)
        y = cast(Tensor, branches[0](x))
        for branch in branches[1:]:
            y = y + branch(x)
        return y

    def kernel(self) -> Tensor:
        """The kernel ``(O, I/groups, *k)`` of the sum of the branches of a block that is trained online.

        Raises:
            InputError: if the block isn't, or if a branch isn't linear.
        """
        if self.online is None:
            raise InputError(
                "only a block made with online=True has its kernel at hand; see unbranch.equivalent_kernel"
            )
        branches = {name: self.get_submodule(name) for name in self.branch_names}
        return online_kernel(branches, self.online, next(self.parameters()))

    def extra_repr(self) -> str:
        words = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        usual = {"padding": (0,) * self.ndim, "dilation": (1,) * self.ndim, "groups": 1, "padding_mode": "zeros"}
        words += [f"{name}={getattr(self, name)!r}" for name, value in usual.items() if getattr(self, name) != value]
        return ", ".join(words)


def initialise(block: BranchedConv, how: float | str) -> None:
    """Set γ of the norm that closes each branch; inner norms stay as they are, as do branches without a norm.

    ``how`` is the value for every branch (1/3 in ACNet's recipes for CIFAR, 1 elsewhere), or a word: ``"single"``
    sets 1 in the main branch and 0 in the others (DBB's "single init"); ``"zero"`` sets 0 in all; ``"identity"`` is
    "single" with a kernel that passes the input on, so that the block starts as its main norm.

    Raises:
        InputError: for another word, if the norms have no γ, or if the block can't be an identity.
    """
    if isinstance(how, str) and how not in WAYS:
        raise InputError(f"`init` must be a number or one of {', '.join(WAYS)}, got {how!r}")
    if how == "identity":
        _make_dirac(block)
    for name in block.branch_names:
        value = float(how) if not isinstance(how, str) else float(how != "zero" and name == block.main)
        for norm in closing_norm(block.get_submodule(name)):
            if isinstance(norm, Scale) or norm.affine:
                nn.init.constant_(norm.weight, value)
            elif value != 1:
                raise InputError(f"init={how!r} can't be set: with affine=False the norms have no scale")


def closing_norm(branch: nn.Module) -> list[_BatchNorm | Scale]:
    """The last batch norm of a branch, or the scale in its place, or none."""
    return [module for module in branch.modules() if isinstance(module, _BatchNorm | Scale)][-1:]


@torch.no_grad()
def _make_dirac(block: BranchedConv) -> None:
    """Make the main kernel one that passes the input on."""
    reach = tuple(d * (k - 1) for k, d in zip(block.kernel_size, block.dilation, strict=True))
    centred = all(k % 2 and 2 * p == r for k, p, r in zip(block.kernel_size, block.padding, reach, strict=True))
    if block.in_channels != block.out_channels or any(s != 1 for s in block.stride) or not centred:
        raise InputError(
            "`init='identity'` needs in_channels == out_channels, stride 1, an odd kernel and padding that keeps "
            f"the size, got {block.extra_repr()}"
        )
    conv = cast(nn.Conv2d, block.get_submodule(f"{block.main}.conv"))
    nn.init.dirac_(conv.weight, block.groups)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
