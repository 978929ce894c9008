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
    sizes,
    structure,
    subgraphs,
)
from tests.onnx.table import ROWS, Left

__all__ = ["MODULES", "MORE_LEFT", "ROWS"]

MODULES = (
    branches, channels, constants, convolutions, exporters, foreign, matrices, opsets, sizes, structure, subgraphs,
)  # fmt: skip

MORE_LEFT = {
    # padding that depends on the size of the input
    "kernel computed from constants: a reshape, a product, a transpose": Left(2, 0, 1, 5),
    # padding that depends on the size of the input
    "convolution and norm: SAME_UPPER": Left(1, 0, 1, 3),
    # padding that depends on the size of the input
    "convolution and norm: SAME_LOWER": Left(1, 0, 1, 3),
    # padding that depends on the size of the input
    "strided branches padded by SAME_UPPER at a known size": Left(2, 0, 0, 4),
    # padding that depends on the size of the input
    "strided branches padded by SAME_LOWER at a known size": Left(2, 0, 0, 4),
    # padding that depends on the size of the input
    "transposed convolution and norm: SAME_UPPER": Left(1, 0, 1, 3),
    # a padding in front of a convolution is an operator of its own
    "Pad constant before a convolution": Left(1, 0, 0, 3),
    # a bias behind a transpose, with nothing else to merge
    "tf2onnx: bias added behind a transpose": Left(1, 0, 0, 5),
    # nothing is known of what comes out of it
    "operator of a domain that nobody knows": Left(3, 0, 3, 11),
    # two norms behind an average
    "norm between a pool and a Gemm": Left(1, 1, 1, 6),
}
"""Rows of which more is left than could be."""
