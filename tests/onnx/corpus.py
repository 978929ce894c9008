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
from tests.onnx.table import ROWS

__all__ = ["MODULES", "ROWS"]

MODULES = (
    branches, channels, constants, convolutions, exporters, foreign, matrices, opsets, structure, subgraphs,
)  # fmt: skip
