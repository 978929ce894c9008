"""Frozen operator values and their laws; imports torch only."""

from unbranch.algebra.compose import compose
from unbranch.algebra.convmap import BORDERS, ConvMap
from unbranch.algebra.gridmap import GridMap, grid_add, grid_compose, grid_scale_shift, grid_select, regridded, to_grid
from unbranch.algebra.laws import (
    add,
    block_diagonal,
    concat,
    densified,
    lifted,
    pad,
    scale_shift,
    select,
    split,
    upsampled,
)
from unbranch.algebra.layers import average_pool, batch_norm_scale_shift, convolution, identity, transposed_convolution

__all__ = [
    "BORDERS",
    "ConvMap",
    "GridMap",
    "add",
    "average_pool",
    "batch_norm_scale_shift",
    "block_diagonal",
    "compose",
    "concat",
    "convolution",
    "densified",
    "grid_add",
    "grid_compose",
    "grid_scale_shift",
    "grid_select",
    "identity",
    "lifted",
    "pad",
    "regridded",
    "scale_shift",
    "select",
    "split",
    "to_grid",
    "transposed_convolution",
    "upsampled",
]
