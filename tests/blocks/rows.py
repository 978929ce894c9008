"""The blocks, one row each: how to make one, what it stands for, and configurations in which it has to hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from unbranch.blocks import (
    ACB,
    DBB,
    FFN,
    GRN,
    OREPA,
    Compactor,
    ConvFFN,
    DilatedReparam,
    LargeKernel,
    Mixed,
    MobileOne,
    QARepVGG,
    RepGhostBottleneck,
    RepGhostModule,
    RepLKBlock,
    RepMixer,
    RepMixerBlock,
    RepMLP,
    RepMLPUnit,
    RepVGG,
    RepVGGDW,
    RepViTBlock,
    UniRepLKNetBlock,
    WindowPerceptron,
)

Arguments = dict[str, Any]

# Of a convolution on 8 channels, for all blocks that stand for one.
GEOMETRIES: dict[str, Arguments] = {
    "same": {"kernel_size": 3, "padding": 1},
    "word": {"kernel_size": (5, 3), "padding": "same", "dilation": 2},
    "word, even": {"kernel_size": (4, 2), "padding": "same"},
    "unpadded": {"kernel_size": 3},
    "overpadded": {"kernel_size": 3, "padding": 4},
    "strided": {"kernel_size": 5, "padding": 2, "stride": (2, 3)},
    "strided, half padded": {"kernel_size": 5, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": (2, 4), "dilation": (2, 4)},
    "dilated, strided": {"kernel_size": 3, "padding": (1, 3), "dilation": 2, "stride": 2},
    "tall": {"kernel_size": (5, 1), "padding": (2, 0)},
    "even": {"kernel_size": (4, 2), "padding": 1},
    "two": {"kernel_size": 2},
    "pointwise": {"kernel_size": 1},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 8, "stride": 2},
    "depthwise, dilated": {"kernel_size": 3, "padding": 3, "groups": 8, "dilation": 3},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 5, "padding": (1, 2), "padding_mode": "replicate", "stride": 2},
    "circular": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
    "no affine": {"kernel_size": 3, "padding": 1, "affine": False},
}
LINES: dict[str, Arguments] = {
    "same": {"kernel_size": 3, "padding": 1},
    "even, strided": {"kernel_size": 4, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": (3,), "padding": 2, "dilation": 2, "groups": 8},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}
VOLUMES: dict[str, Arguments] = {
    "same": {"kernel_size": 3, "padding": 1},
    "uneven": {"kernel_size": (1, 3, 2), "padding": (0, 2, 1), "stride": (1, 2, 1)},
    "depthwise, dilated": {"kernel_size": 3, "padding": (1, 2, 2), "dilation": (1, 2, 2), "groups": 8},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
}
NO_KERNEL = ("affine",)  # arguments that nn.Conv doesn't have


@dataclass(frozen=True)
class Row:
    """A block.

    Args:
        make: called with ``arguments``, updated by one of ``sweep``.
        shape: of an input.
        kernels, norms: convolutions and batch norms left in the deploy form of ``arguments`` alone.
        conv: the layer that it stands for, if it does; it takes the same arguments.
        output: shape of what comes out for ``arguments``; like the input unless given.
        half: whether PyTorch has all its operations in half precision on the CPU; it has no such nn.AvgPool3d.
    """

    make: Callable[..., nn.Module]
    arguments: Arguments
    shape: tuple[int, ...]
    kernels: int = 1
    norms: int = 0
    sweep: dict[str, Arguments] = field(default_factory=dict)
    conv: type[nn.Module] | None = None
    output: tuple[int, ...] | None = None
    half: bool = True


def small_of(kernel: int | tuple[int, ...]) -> Any:
    """A kernel one shorter, so that its parity differs."""
    return max(1, kernel - 1) if isinstance(kernel, int) else tuple(max(1, k - 1) for k in kernel)


def large_kernel(*args: Any, kernel_size: Any, **kwargs: Any) -> LargeKernel:
    return LargeKernel(*args, kernel_size=kernel_size, small_kernel=small_of(kernel_size), **kwargs)


def dilated(*args: Any, kernel_size: Any, **kwargs: Any) -> DilatedReparam:
    """With one tap, and with as many as fit two apart."""
    sides = (kernel_size,) if isinstance(kernel_size, int) else kernel_size
    odd = [k if k % 2 else k - 1 for k in sides]
    taps = (min(odd) + 1) // 2
    wide = ((taps, 2),) if taps > 1 and taps % 2 else ()
    return DilatedReparam(*args, kernel_size=kernel_size, branches=((1, 1), *wide), **kwargs)


def mixed(in_channels: int, out_channels: int, stride: Any = 1, ndim: int = 2, **kwargs: Any) -> Mixed:
    """Branches of all papers in one block."""
    lines = {1: (), 2: ("vertical", "horizontal"), 3: ("depth", "vertical", "horizontal")}[ndim]
    through = ("identity", "skip") if in_channels == out_channels and stride in (1, (1,) * ndim) else ()
    names = ("kxk", "1x1", *through, *lines, "average", "1x1_kxk")
    return Mixed(in_channels, out_channels, stride=stride, ndim=ndim, branches=names, **kwargs)


def planar(make: Callable[..., nn.Module]) -> Row:
    usual = {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1}
    return Row(make, usual, (2, 8, 13, 16), sweep=_plain(GEOMETRIES), conv=nn.Conv2d)


def linear(make: Callable[..., nn.Module]) -> Row:
    usual = {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1, "ndim": 1}
    return Row(make, usual, (2, 8, 13), sweep=_plain(LINES), conv=nn.Conv1d)


def spatial(make: Callable[..., nn.Module], half: bool = True) -> Row:
    usual = {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1, "ndim": 3}
    return Row(make, usual, (2, 8, 6, 5, 7), sweep=_plain(VOLUMES), conv=nn.Conv3d, half=half)


def _plain(geometries: dict[str, Arguments]) -> dict[str, Arguments]:
    """Each geometry with as many output channels as inputs, and with twice as many; padding 0 unless it says."""
    return {
        f"{name}, to {out}": {"padding": 0, "out_channels": out, **arguments}
        for name, arguments in geometries.items()
        for out in (8, 16)
    }


ROWS: dict[str, Row] = {
    "ACB": planar(ACB),
    "DBB": planar(DBB),
    "RepVGG": planar(RepVGG),
    "LargeKernel": planar(large_kernel),
    "Mixed": planar(mixed),
    "MobileOne": planar(partial(MobileOne, num_branches=3)),
    "QARepVGG": planar(QARepVGG),
    "DilatedReparam": planar(dilated),
    "OREPA": planar(OREPA),
    "OREPA-1d": linear(OREPA),
    "OREPA-3d": spatial(OREPA),
    "Mixed online": planar(partial(mixed, online=True)),
    "DilatedReparam online": planar(partial(dilated, online=True)),
    "DBB-1d": linear(DBB),
    "RepVGG-1d": linear(RepVGG),
    "LargeKernel-1d": linear(large_kernel),
    "Mixed-1d": linear(mixed),
    "MobileOne-1d": linear(partial(MobileOne, num_branches=2)),
    "QARepVGG-1d": linear(QARepVGG),
    "DilatedReparam-1d": linear(dilated),
    "ACB-3d": spatial(ACB),
    "DBB-3d": spatial(DBB, half=False),
    "RepVGG-3d": spatial(RepVGG),
    "LargeKernel-3d": spatial(large_kernel),
    "Mixed-3d": spatial(mixed, half=False),
    "MobileOne-3d": spatial(MobileOne),
    "QARepVGG-3d": spatial(QARepVGG),
    "DilatedReparam-3d": spatial(dilated),
    "RepVGG with gate": Row(
        RepVGG,
        {"in_channels": 16, "out_channels": 16, "padding": 1, "squeeze_excite": "before", "activation": nn.ReLU},
        (2, 16, 7, 9),
        kernels=3,  # two of them the gate's
        sweep={
            "after": {"squeeze_excite": "after"},
            "after, strided": {"squeeze_excite": "after", "stride": 2, "out_channels": 12},
            "no activation": {"activation": None, "reduction": 2},
        },
    ),
    "RepLKBlock": Row(
        RepLKBlock,
        {"channels": 6, "dw_channels": 8, "kernel_size": 7},
        (2, 6, 9, 11),
        kernels=3,
        sweep={
            "no small": {"small_kernel": None, "drop_path": 0.5},
            "of one size": {"kernel_size": 5},
            "even small": {"kernel_size": 9, "small_kernel": 4},
        },
    ),
    "ConvFFN": Row(
        ConvFFN,
        {"in_channels": 6, "internal_channels": 12, "out_channels": 6},
        (2, 6, 9, 11),
        kernels=2,
        sweep={"drop path": {"drop_path": 0.2}},
    ),
    "RepGhostModule": Row(
        RepGhostModule,
        {"in_channels": 6, "out_channels": 8},
        (2, 6, 9, 11),
        kernels=2,
        output=(2, 8, 9, 11),
        sweep={
            "no relu": {"relu": False},
            "3x3, strided": {"kernel_size": 3, "stride": 2},
            **{f"fusion {name}": {"fusion": name} for name in ("identity", "both", "none")},
            **{f"dw {k}, {f}": {"dw_size": k, "fusion": f} for k in (1, 2, 4, 5, 7) for f in ("bn", "both", "none")},
        },
    ),
    "RepGhostBottleneck": Row(
        RepGhostBottleneck,
        {"in_channels": 8, "mid_channels": 12, "out_channels": 8},
        (2, 8, 9, 11),
        kernels=4,
        sweep={
            "wo": {"shortcut": False},
            "expand, gate": {"out_channels": 12, "se_ratio": 0.25, "kernel_size": 5},
            "strided": {"stride": 2, "out_channels": 12, "fusion": "both"},
            "strided, gate": {"stride": 2, "se_ratio": 0.25, "fusion": "identity"},
            "strided, even": {"stride": 2, "kernel_size": 4, "fusion": "none", "shortcut": False},
        },
    ),
    "WindowPerceptron": Row(
        WindowPerceptron,
        {"sharesets": 2, "window": (3, 4), "kernels": (1, 3)},
        (4, 2, 3, 4),
        sweep={
            "no conv": {"kernels": ()},
            "one set": {"sharesets": 1, "kernels": (3,)},
            "even, non-square": {"kernels": (2, (1, 3), (2, 5), 4)},
            "larger than the window": {"kernels": (7,)},
        },
    ),
    "RepMLP": Row(
        RepMLP,
        {"channels": 8, "window": (3, 4), "sharesets": 2},
        (2, 8, 6, 8),
        kernels=3,  # the FC and two of the gate
        sweep={
            "no conv": {"kernels": None},
            "one window": {"window": (6, 8), "sharesets": 1, "reduction": 2},
            "one run": {"sharesets": 8, "kernels": (1, 3, 5)},
            "even": {"kernels": (2, 4), "sharesets": 4},
        },
    ),
    "RepMLPUnit": Row(
        RepMLPUnit,
        {"channels": 8, "window": (3, 4), "sharesets": 2},
        (2, 8, 6, 8),
        kernels=5,
        norms=1,  # before the windows are cut
        sweep={"expansion": {"expansion": 2, "kernels": (3,)}},
    ),
    "FFN": Row(
        FFN,
        {"in_channels": 6, "hidden_channels": 12},
        (2, 6, 5, 7),
        kernels=2,
        sweep={"widths": {"out_channels": 9}, "same width": {"hidden_channels": None}, "linear": {"activation": None}},
    ),
    "DilatedReparam of the paper": Row(
        DilatedReparam,
        {"in_channels": 6, "out_channels": 6, "kernel_size": 13, "padding": 6, "groups": 6},
        (2, 6, 17, 19),
        sweep={f"{k}": {"kernel_size": k, "padding": k // 2} for k in (5, 7, 9, 11, 15, 17)},
    ),
    "UniRepLKNetBlock": Row(
        UniRepLKNetBlock,
        {"channels": 8, "kernel_size": 7},
        (2, 8, 9, 11),
        kernels=5,
        sweep={"small": {"kernel_size": 3}, "drop path": {"kernel_size": 13, "drop_path": 0.2, "layer_scale": 0.5}},
    ),
    "GRN": Row(GRN, {"channels": 6}, (2, 6, 5, 7), kernels=0),
    "RepMixer": Row(
        RepMixer, {"channels": 6}, (2, 6, 9, 11), sweep={"5": {"kernel_size": 5}, "no scale": {"layer_scale": None}}
    ),
    "RepMixerBlock": Row(
        RepMixerBlock,
        {"channels": 6},
        (2, 6, 9, 11),
        kernels=4,
        sweep={"no scale": {"layer_scale": None, "drop_path": 0.2}, "wide": {"ffn_ratio": 2.5, "kernel_size": 5}},
    ),
    "RepVGGDW": Row(RepVGGDW, {"channels": 6}, (2, 6, 9, 11), sweep={"5": {"kernel_size": 5}}),
    "RepViTBlock": Row(
        RepViTBlock,
        {"channels": 8},
        (2, 8, 9, 11),
        kernels=3,
        sweep={"gate": {"squeeze_excite": True}, "wide": {"ffn_ratio": 4}},
    ),
    "Compactor": Row(Compactor, {"channels": 6}, (2, 6, 5, 7)),
}
CONVOLUTIONS = {name: row for name, row in ROWS.items() if row.conv is not None}


def conv_arguments(row: Row, arguments: Arguments) -> Arguments:
    """What a row's arguments are to the layer it stands for."""
    return {k: v for k, v in (row.arguments | arguments).items() if k not in ("ndim", *NO_KERNEL)}
