"""The corpus: small models of the kinds that exporters write, and what collapsing may leave of each."""

from __future__ import annotations

from tests.onnx.kinds import (
    branches,
    channels,
    constants,
    convolutions,
    exporters,
    foreign,
    matrices,
    opsets,
    structure,
    subgraphs,
)
from tests.onnx.table import ROWS, Left

__all__ = ["MODULES", "MORE_LEFT", "ROWS"]

MODULES = (
    branches, channels, constants, convolutions, exporters, foreign, matrices, opsets, structure, subgraphs,
)  # fmt: skip

MORE_LEFT = {
    "pixels to channels by slices, then a convolution (Focus)": Left(
        1, 0, 0, 13
    ),  # padding of its own, and slices of one value
    "kernel computed from constants: a reshape, a product, a transpose": Left(
        2, 0, 1, 5
    ),  # padding that depends on the size of the input
    "convolution and norm: SAME_UPPER": Left(1, 0, 1, 3),  # padding that depends on the size of the input
    "convolution and norm: SAME_LOWER": Left(1, 0, 1, 3),  # padding that depends on the size of the input
    "strided branches padded by SAME_UPPER at a known size": Left(
        2, 0, 0, 4
    ),  # padding that depends on the size of the input
    "strided branches padded by SAME_LOWER at a known size": Left(
        2, 0, 0, 4
    ),  # padding that depends on the size of the input
    "transposed convolution and norm: SAME_UPPER": Left(1, 0, 1, 3),  # padding that depends on the size of the input
    "Pad constant before a convolution": Left(1, 0, 0, 3),  # padding of its own in front of a convolution
    "tf2onnx: bias added behind a transpose": Left(1, 0, 0, 5),  # a bias on the other side of a transpose
    "paddle2onnx: scales as operators, Identity everywhere, constants as nodes": Left(
        2, 0, 0, 7
    ),  # a scale in front of padding
    "torch, traced: shapes computed node by node": Left(2, 0, 0, 16),  # shapes that depend on the batch
    "detector: image scaled inside, boxes decoded with constants": Left(2, 0, 0, 14),  # decoding of boxes
    "quantised and dequantised values around convolutions (QDQ)": Left(
        2, 0, 0, 12
    ),  # quantised operators are left alone
    "quantised branches (QDQ)": Left(2, 0, 0, 12),  # quantised operators are left alone
    "operator of a domain that nobody knows": Left(3, 0, 3, 11),  # nothing is known of what comes out of it
    "norm between a pool and a Gemm": Left(1, 1, 1, 6),  # two norms behind an average
    "all that moves at opset 7": Left(3, 1, 0, 14),  # axes that are added and removed
    "all that moves at opset 9": Left(3, 1, 0, 14),  # axes that are added and removed
    "all that moves at opset 11": Left(3, 1, 0, 14),  # axes that are added and removed
    "all that moves at opset 13": Left(3, 1, 0, 14),  # axes that are added and removed
    "all that moves at opset 17": Left(3, 1, 0, 14),  # axes that are added and removed
    "all that moves at opset 21": Left(3, 1, 0, 14),  # axes that are added and removed
    "all that moves at opset 28": Left(3, 1, 0, 14),  # axes that are added and removed
    "matrices at opset 7": Left(0, 2, 0, 10),  # axes that are moved back and forth
    "matrices at opset 9": Left(0, 2, 0, 10),  # axes that are moved back and forth
    "matrices at opset 11": Left(0, 2, 0, 10),  # axes that are moved back and forth
    "matrices at opset 13": Left(0, 2, 0, 10),  # axes that are moved back and forth
    "matrices at opset 17": Left(0, 2, 0, 10),  # axes that are moved back and forth
    "matrices at opset 21": Left(0, 2, 0, 10),  # axes that are moved back and forth
    "matrices at opset 28": Left(0, 2, 0, 10),  # axes that are moved back and forth
}
"""Rows of which more is left than could be, and why."""
