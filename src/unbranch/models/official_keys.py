"""Names of parameters in the published code of the blocks, and ours: tables, read in both directions.

A row is (published prefix, our prefix). The table of a module that holds others is made of theirs, ``under`` a
prefix; so will be those of whole networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, TypeVar

from unbranch.errors import InputError

Table: TypeAlias = tuple[tuple[str, str], ...]
T = TypeVar("T")


def under(official: str, ours: str, table: Table) -> Table:
    """The table of a module that is a child of another, under these names."""
    return tuple((f"{official}.{theirs}", f"{ours}.{mine}") for theirs, mine in table)


def to_ours(table: Table, values: Mapping[str, T]) -> dict[str, T]:
    """Values by our keys, given by published keys; the inverse of ``to_official``.

    Raises:
        InputError: if a key isn't in the table.

    >>> to_ours(OFFICIAL_KEYS["ACBlock"], {"hor_conv.weight": 1})
    {'horizontal.conv.weight': 1}
    """
    return _renamed(table, values, "published")


def to_official(table: Table, values: Mapping[str, T]) -> dict[str, T]:
    """Values by published keys, given by ours; the inverse of ``to_ours``.

    Raises:
        InputError: if a key isn't in the table.

    >>> to_official(OFFICIAL_KEYS["ACBlock"], {"horizontal.conv.weight": 1})
    {'hor_conv.weight': 1}
    """
    return _renamed(tuple((ours, theirs) for theirs, ours in table), values, "our")


def _renamed(rows: Table, values: Mapping[str, T], whose: str) -> dict[str, T]:
    renamed: dict[str, T] = {}
    for key, value in values.items():
        row = next((row for row in rows if key.startswith(row[0])), None)
        if row is None:
            raise InputError(f"{key!r} is none of {whose} keys, which begin with {', '.join(old for old, _ in rows)}")
        renamed[row[1] + key.removeprefix(row[0])] = value
    return renamed


_ACB: Table = (
    ("square_conv.", "square.conv."),
    ("square_bn.", "square.bn."),
    ("ver_conv.", "vertical.conv."),
    ("ver_bn.", "vertical.bn."),
    ("hor_conv.", "horizontal.conv."),
    ("hor_bn.", "horizontal.bn."),
)
_DBB: Table = (
    ("dbb_origin.", "conv_kxk."),
    ("dbb_1x1_kxk.idconv1.", "conv_1x1_kxk.identity_1x1."),
    ("dbb_1x1_kxk.conv1.", "conv_1x1_kxk.conv_1x1."),
    ("dbb_1x1_kxk.bn1.", "conv_1x1_kxk.border_bn."),
    ("dbb_1x1_kxk.conv2.", "conv_1x1_kxk.conv_kxk."),
    ("dbb_1x1_kxk.bn2.", "conv_1x1_kxk.bn."),
    ("dbb_1x1.", "conv_1x1."),
    ("dbb_avg.conv.", "average.conv_1x1."),
    ("dbb_avg.bn.", "average.border_bn."),
    ("dbb_avg.avgbn.", "average.bn."),
)
_REPVGG: Table = (
    ("rbr_identity.", "identity.bn."),
    ("rbr_dense.", "conv_kxk."),
    ("rbr_1x1.", "conv_1x1."),
)
_REPMLP: Table = (
    ("gp.fc1.", "gate.down."),
    ("gp.fc2.", "gate.up."),
    ("fc3.", "perceptron.fc."),
    ("fc3_bn.", "perceptron.fc_bn."),
    ("repconv", "perceptron.conv"),  # and the size of the kernel
)
_FFN: Table = (("ffn_fc1.", "fc1."), ("ffn_fc2.", "fc2."))
_LARGE_KERNEL: Table = (("lkb_origin.", "large."), ("small_conv.", "small."))
_POINTWISE: Table = (("pw1.", "pw1."), ("pw2.", "pw2."))
_REPGHOST: Table = (
    ("primary_conv.0.", "primary.conv."),
    ("primary_conv.1.", "primary.bn."),
    ("fusion_bn.0.", "cheap.identity.bn."),
    ("cheap_operation.0.", "cheap.kxk.conv."),
    ("cheap_operation.1.", "cheap.kxk.bn."),
)

OFFICIAL_KEYS: dict[str, Table] = {
    "ACBlock": _ACB,
    "DiverseBranchBlock": _DBB,
    "RepVGGBlock": (*_REPVGG, ("se.", "post.0.")),
    "RepVGGplusBlock": (*_REPVGG, ("post_se.", "post.1.")),
    "RepMLPBlock": _REPMLP,
    "FFNBlock": _FFN,
    "RepMLPNetUnit": (
        *under("repmlp_block", "block", _REPMLP),
        *under("ffn_block", "ffn", _FFN),
        ("prebn1.", "norm1."),
        ("prebn2.", "norm2."),
    ),
    "ReparamLargeKernelConv": _LARGE_KERNEL,
    "RepLKBlock": (*_POINTWISE, *under("large_kernel", "large_kernel", _LARGE_KERNEL), ("prelkb_bn.", "norm.")),
    "ConvFFN": (("preffn_bn.", "norm."), *_POINTWISE),
    "RepGhostModule": _REPGHOST,
    "RepGhostBottleneck": (
        *under("ghost1", "ghost1", _REPGHOST),
        ("conv_dw.", "depthwise.conv."),
        ("bn_dw.", "depthwise.bn."),
        ("se.conv_reduce.", "se.down."),
        ("se.conv_expand.", "se.up."),
        *under("ghost2", "ghost2", _REPGHOST),
        ("shortcut.0.", "shortcut.depthwise.conv."),
        ("shortcut.1.", "shortcut.depthwise.bn."),
        ("shortcut.2.", "shortcut.pointwise.conv."),
        ("shortcut.3.", "shortcut.pointwise.bn."),
    ),
    "Compactor": (("pwc.", "conv."), ("mask", "mask")),
}
"""By the name of the class in the published code (for the compactor, ours)."""
