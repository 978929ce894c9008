"""Frozen affine maps and their laws; imports torch only."""

from unbranch.algebra import conv_compose as _compositions  # noqa: F401  (registers the laws of convolutions)
from unbranch.algebra.affine import AffineMap
from unbranch.algebra.conv_laws import as_pointwise, with_groups, zero_stuff
from unbranch.algebra.convmap import PADDING_MODES, ConvMap
from unbranch.algebra.grid_laws import to_grid
from unbranch.algebra.gridmap import GridMap
from unbranch.algebra.laws import add, compose, concat, pad, reshape, scale_shift, select
from unbranch.algebra.layers import (
    average_pool,
    batch_norm_scale_shift,
    convolution,
    identity,
    transposed_convolution,
)
from unbranch.deprecation import renamed_names

__all__ = [
    "PADDING_MODES",
    "AffineMap",
    "ConvMap",
    "GridMap",
    "add",
    "as_pointwise",
    "average_pool",
    "batch_norm_scale_shift",
    "compose",
    "concat",
    "convolution",
    "identity",
    "pad",
    "reshape",
    "scale_shift",
    "select",
    "to_grid",
    "transposed_convolution",
    "with_groups",
    "zero_stuff",
]

__getattr__ = renamed_names(
    __name__,
    {
        "BORDERS": "PADDING_MODES",
        "densified": "with_groups",
        "grid_add": "add",
        "grid_compose": "compose",
        "grid_scale_shift": "scale_shift",
        "grid_select": "select",
        "lifted": "as_pointwise",
        "regridded": "reshape",
        "upsampled": "zero_stuff",
    },
)
