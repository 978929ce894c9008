"""The published blocks, built from the arguments of their own constructors, under our keys."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unbranch.blocks import (
    ACB,
    DBB,
    FFN,
    Compactor,
    ConvFFN,
    LargeKernel,
    RepGhostBottleneck,
    RepGhostModule,
    RepLKBlock,
    RepMLP,
    RepMLPUnit,
    RepVGG,
)
from unbranch.weights.layouts import OFFICIAL_KEYS, Table, under

FOLDER = Path(os.environ.get("UNBRANCH_OFFICIAL", Path(__file__).parents[2] / "../shared/official"))
State = Mapping[str, Tensor]


def acblock(
    in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros",
    deploy=False, use_affine=True, reduce_gamma=False, gamma_init=None,
):  # fmt: skip
    init = 1 / 3 if reduce_gamma else 1.0 if gamma_init is None else gamma_init
    return ACB(
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode=padding_mode,
        affine=use_affine, init=init,
    )  # fmt: skip


def diverse_branch_block(
    in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1,
    internal_channels_1x1_3x3=None, deploy=False, nonlinear=None, single_init=False,
):  # fmt: skip
    return DBB(
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
        internal_channels=internal_channels_1x1_3x3, activation=activation(nonlinear),
        init="single" if single_init else 1.0,
    )  # fmt: skip


def repvgg_block(
    in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros",
    deploy=False, use_se=False, use_post_se=False,
):  # fmt: skip
    """The published training branches know nothing of dilation and padding mode."""
    squeeze = "before" if use_se else "after" if use_post_se else None
    return RepVGG(
        in_channels, out_channels, kernel_size, stride, padding, groups=groups, activation=nn.ReLU,
        squeeze_excite=squeeze,
    )  # fmt: skip


def repmlp_block(
    in_channels, out_channels, h, w, reparam_conv_k=None, globalperceptron_reduce=4, num_sharesets=1, deploy=False
):
    assert in_channels == out_channels
    return RepMLP(in_channels, (h, w), reparam_conv_k, num_sharesets, globalperceptron_reduce)


def repmlp_unit(channels, h, w, reparam_conv_k, globalperceptron_reduce, ffn_expand=4, num_sharesets=1, deploy=False):
    return RepMLPUnit(channels, (h, w), reparam_conv_k, num_sharesets, globalperceptron_reduce, ffn_expand)


def ffn_block(in_channels, hidden_channels=None, out_channels=None, act_layer="GELU"):
    return FFN(in_channels, hidden_channels, out_channels, activation(act_layer))


def large_kernel(in_channels, out_channels, kernel_size, stride, groups, small_kernel, small_kernel_merged=False):
    return LargeKernel(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, small_kernel=small_kernel
    )


def replk_block(in_channels, dw_channels, block_lk_size, small_kernel, drop_path, small_kernel_merged=False):
    return RepLKBlock(in_channels, dw_channels, block_lk_size, small_kernel, drop_path)


def repghost_module(
    inp, oup, kernel_size=1, dw_size=3, stride=1, relu=True, deploy=False, reparam_bn=True, reparam_identity=False
):
    return RepGhostModule(inp, oup, kernel_size, dw_size, stride, relu, fusion(reparam_bn, reparam_identity))


def repghost_bottleneck(
    in_chs, mid_chs, out_chs, dw_kernel_size=3, stride=1, se_ratio=0.0, shortcut=True, reparam=True,
    reparam_bn=True, reparam_identity=False, deploy=False,
):  # fmt: skip
    kind = fusion(reparam and reparam_bn, reparam and reparam_identity)
    return RepGhostBottleneck(in_chs, mid_chs, out_chs, dw_kernel_size, stride, se_ratio or 0.0, shortcut, kind)


def fusion(norm: bool, identity: bool) -> str:
    return {(True, True): "both", (True, False): "bn", (False, True): "identity"}.get((norm, identity), "none")


def activation(name: str | None) -> Callable[[], nn.Module] | None:
    return None if name is None else getattr(nn, name.removesuffix("()").rsplit(".")[-1])


def resrep_chain(state: State, deps: list[int], threshold: float, stride: int = 1, fc: bool = False) -> nn.Module:
    """conv-BN-compactor-ReLU, and a second conv-BN or a classifier behind it."""
    first = unit(state, "conv1", stride)
    first.add_module("compactor", Compactor(deps[0]))
    layers = OrderedDict(conv1=first, relu=nn.ReLU())
    if fc:
        layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        layers["linear"] = nn.Linear(deps[0], len(state["linear.weight"]))
    else:
        layers["conv2"] = unit(state, "conv2", 1)
    return nn.Sequential(layers)


def unit(state: State, name: str, stride: int) -> nn.Sequential:
    out_channels, in_channels, kernel, _ = state[f"{name}.conv.weight"].shape
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))


@dataclass(frozen=True)
class Published:
    """How to build a published block, and its keys; ``sees_state`` if widths come from the weights."""

    make: Callable[..., nn.Module]
    table: Table
    sees_state: bool = False


def row(name: str, make: Callable[..., nn.Module]) -> tuple[str, Published]:
    return name, Published(make, OFFICIAL_KEYS[name])


CHAIN: Table = (
    *under("conv1.compactor", "conv1.compactor", OFFICIAL_KEYS["Compactor"]),
    *((name, name) for name in ("conv1.", "conv2.", "linear.")),
)
BLOCKS: dict[str, Published] = dict(
    (
        row("ACBlock", acblock),
        row("DiverseBranchBlock", diverse_branch_block),
        row("RepVGGBlock", repvgg_block),
        row("RepVGGplusBlock", repvgg_block),
        row("RepMLPBlock", repmlp_block),
        row("RepMLPNetUnit", repmlp_unit),
        row("FFNBlock", ffn_block),
        row("ReparamLargeKernelConv", large_kernel),
        row("RepLKBlock", replk_block),
        row("ConvFFN", lambda **arguments: ConvFFN(**arguments)),
        row("RepGhostModule", repghost_module),
        row("RepGhostBottleneck", repghost_bottleneck),
        ("conv-bn-compactor-relu followed by conv3x3-bn", Published(resrep_chain, CHAIN, True)),
        (
            "conv-bn-compactor-relu followed by global average pool + linear",
            Published(resrep_chain, CHAIN, True),
        ),
    )
)


def build(block: str, arguments: dict[str, Any], state: State) -> nn.Module:
    published = BLOCKS[block]
    return published.make(**({"state": state} if published.sees_state else {}), **arguments).double()
