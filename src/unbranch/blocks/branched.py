"""The base class of blocks that replace one convolution by a sum of branches.

    y = post( Σ branch(x) )        deploys as   post( K×K * x + b )

A block defines its branches, and which of them has the full kernel. It takes the arguments of nn.Conv2d and has its
attributes, so it can replace a convolution in any network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbranch.blocks.fused_training import fused_sum
from unbranch.blocks.layers import Scale
from unbranch.blocks.online_kernel import online_kernel
from unbranch.blocks.parts import Activation, Device, Size, on, through
from unbranch.blocks.spec import ConvSpec, resolve_padding
from unbranch.deprecation import RenamedAttribute, renamed_names, warn_deprecated
from unbranch.errors import InputError
from unbranch.grids import CONV_FUNCTIONS, CONV_LAYERS, per_axis
from unbranch.large_kernels import accelerate_large_kernels, large_conv2d

INITIALISATIONS = ("single", "zero", "identity")
"""Named ways to initialise a block, see ``initialise``."""


class BranchOptions(TypedDict, total=False):
    """Keyword arguments of every ``BranchedConv``, see there."""

    ndim: int
    activation: Activation
    init: float | str
    affine: bool
    eps: float
    momentum: float
    online: bool


class BranchedConv(nn.Module):
    """Sum of named branches, ``(B, C_in, *size)`` to ``(B, C_out, *size')`` as nn.Conv2d.

    A subclass implements ``make_branches`` and sets ``main_branch`` to the name of the branch with the full kernel,
    which must be an ``nn.Sequential`` with the children ``conv`` and ``bn``. The block registers the branches as its
    children; ``branch_names`` lists their names.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, device, dtype: as
            for nn.Conv2d. Padding with a mode other than zeros is applied once, before all branches.
        bias: has no effect, because the batch norms of the branches have a bias; accepted for compatibility with
            nn.Conv2d.
        ndim: number of grid dimensions: 1, 2 or 3.
        activation: factory of the module after the sum, such as ``nn.ReLU``.
        init: initial scale of the last norm of each branch, see ``initialise``.
        affine, eps, momentum: of the batch norms.
        online: merge the kernels in each training step: the branches have scales in place of batch norms (under the
            same names, ``bn``), one convolution uses the sum of their kernels, and one batch norm follows it.
            Hu et al., CVPR 2022, see ``OREPA``.

    Raises:
        InputError: if the arguments are invalid for a convolution, or for this block.

    Example:
        >>> class Twice(BranchedConv):
        ...     main_branch = "first"
        ...     def make_branches(self, spec):
        ...         return {"first": spec.conv_bn(), "second": spec.conv_bn()}
        >>> Twice(3, 8, 3, padding=1)(torch.zeros(1, 3, 6, 7)).shape
        torch.Size([1, 8, 6, 7])
    """

    main_branch: str
    main = RenamedAttribute("main_branch")
    fused_in_training = False  # see fuse_branches_in_training

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "main" in vars(cls):  # the old name
            warn_deprecated(f"`main` of {cls.__name__} is deprecated, use `main_branch`")
            cls.main_branch = cls.__dict__["main"]
            del cls.main

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
        self.padding = tuple(before for before, _ in amounts)  # "same" with an odd total pads one more after
        self.groups, self.padding_mode = groups, padding_mode
        self.pad, spec = ConvSpec(
            in_channels, out_channels, self.kernel_size, self.stride, (0,) * ndim, self.dilation, groups,
            affine, eps, momentum, device, dtype,
        ).padded_by(padding_mode, amounts)  # fmt: skip
        self.online = replace(spec, online=True) if online else None
        branches = self.make_branches(self.online or spec)
        if "main" in vars(self):  # the old name
            warn_deprecated(f"`main` of {type(self).__name__} is deprecated, use `main_branch`")
            self.main_branch = vars(self).pop("main")
        self.branch_names = tuple(branches)
        for name, branch in branches.items():
            if name in ("post", "closing", "main") or hasattr(self, name):
                raise InputError(f"names of branches must not be attributes of the block, got {name!r}")
            self.add_module(name, branch)
        self.closing = self.make_closing(spec) or (spec.norm(out_channels) if online else None)
        self.post = None if activation is None else on(activation(), device, dtype)
        initialise(self, init)
        if online:
            self.kernel()  # raises if a branch isn't linear

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        accelerate_large_kernels(self)  # pickled as plain convolutions

    def __dir__(self) -> list[str]:  # torch.jit.trace reads all attributes
        return [name for name in super().__dir__() if name != "main"]  # type: ignore[no-untyped-call]

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        """Return the branches by name, in the order of summation.

        Args:
            spec: the convolution that the block replaces; builds layers that match it.

        Returns:
            Modules from ``(B, C_in, *size)`` to ``(B, C_out, *size')``.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `make_branches`")

    def make_closing(self, spec: ConvSpec) -> nn.Module | None:  # noqa: ARG002
        """Return the batch norm after the sum, or None for a block without one."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        y = self.summed(through(self.pad, x), self.branch_names)
        return through(self.post, through(self.closing, y))

    def summed(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Return ``Σ branch(x)`` over the named branches, at least one."""
        branches = [self.get_submodule(name) for name in names]
        if self.online is not None:
            spec = self.online
            conv = large_conv2d if self.ndim == 2 else CONV_FUNCTIONS[self.ndim]
            return conv(x, self.kernel(), None, spec.stride, spec.padding, spec.dilation, spec.groups)
        if self.fused_in_training and self.training:
            return fused_sum(branches, x, self.groups)
        y = cast(Tensor, branches[0](x))
        for branch in branches[1:]:
            y = y + branch(x)
        return y

    def kernel(self) -> Tensor:
        """Return the kernel ``(O, I/groups, *k)`` of the sum of the branches of an online block.

        Raises:
            InputError: if the block isn't online, or if a branch isn't linear.
        """
        if self.online is None:
            raise InputError(
                "`kernel()` needs a block with online=True; use unbranch.equivalent_kernel for other blocks"
            )
        branches = {name: self.get_submodule(name) for name in self.branch_names}
        return online_kernel(branches, self.online, next(self.parameters()))

    def extra_repr(self) -> str:
        words = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        usual = {"padding": (0,) * self.ndim, "dilation": (1,) * self.ndim, "groups": 1, "padding_mode": "zeros"}
        words += [f"{name}={getattr(self, name)!r}" for name, value in usual.items() if getattr(self, name) != value]
        return ", ".join(words)


def initialise(block: BranchedConv, how: float | str) -> None:
    """Set γ of the last norm of each branch; inner norms and branches without a norm don't change.

    Args:
        block: the block to change in place.
        how: the value of γ in every branch (1/3 in ACNet's recipes for CIFAR, 1 elsewhere), or a word: ``"single"``
            sets 1 in the main branch and 0 in the others (DBB's "single init"); ``"zero"`` sets 0 in all;
            ``"identity"`` is "single" with an identity kernel in the main branch.

    Raises:
        InputError: for another word; if the norms have no γ; if the block's geometry doesn't allow an identity.
    """
    if isinstance(how, str) and how not in INITIALISATIONS:
        raise InputError(f"`init` must be a number or one of {', '.join(INITIALISATIONS)}, got {how!r}")
    if how == "identity":
        _make_dirac(block)
    for name in block.branch_names:
        value = float(how) if not isinstance(how, str) else float(how != "zero" and name == block.main_branch)
        for norm in closing_norm(block.get_submodule(name)):
            if isinstance(norm, Scale) or norm.affine:
                nn.init.constant_(norm.weight, value)
            elif value != 1:
                raise InputError(f"`init` must be 1, because with affine=False the norms have no scale, got {how!r}")


def closing_norm(branch: nn.Module) -> list[_BatchNorm | Scale]:
    """Return the last batch norm or scale of a branch in a list, empty if it has none."""
    return [module for module in branch.modules() if isinstance(module, _BatchNorm | Scale)][-1:]


@torch.no_grad()
def _make_dirac(block: BranchedConv) -> None:
    """Set the main kernel to the identity."""
    reach = tuple(d * (k - 1) for k, d in zip(block.kernel_size, block.dilation, strict=True))
    centred = all(k % 2 and 2 * p == r for k, p, r in zip(block.kernel_size, block.padding, reach, strict=True))
    if block.in_channels != block.out_channels or any(s != 1 for s in block.stride) or not centred:
        raise InputError(
            "`init='identity'` needs in_channels == out_channels, stride 1, an odd kernel and padding that keeps "
            f"the size, got {block.extra_repr()}"
        )
    conv = cast(nn.Conv2d, block.get_submodule(f"{block.main_branch}.conv"))
    nn.init.dirac_(conv.weight, block.groups)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


__getattr__ = renamed_names(__name__, {"WAYS": "INITIALISATIONS"})
