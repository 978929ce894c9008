"""Rules of ``ScalingMode`` for pooling, moves of numbers, and new memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unbranch.quantize.calls import Call
from unbranch.quantize.labels import ANY, FIXED
from unbranch.quantize.scaling import POSITIONS, ScalingMode, Shadows, any_scale, each, rule

# Pooling


@rule("mean", "sum", "amax", "amin", "max", "min")
def _reduce(mode: ScalingMode, call: Call) -> Any:
    x, axes = call.arg(0), call.arg(1)
    if isinstance(axes, Tensor) or not x.is_floating_point():
        return NotImplemented
    chosen = range(x.dim()) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    labels = mode.labels.reduced(mode.of(x), [axis % x.dim() for axis in chosen], POSITIONS)
    first = call.result[0] if isinstance(call.result, tuple | list) else call.result
    return each(labels.reshape(first.shape))


def _pool(dims: int) -> Any:
    def pool(mode: ScalingMode, call: Call) -> Any:
        labels = mode.of(call.arg(0))
        return each(mode.labels.reduced(labels, range(labels.dim() - dims, labels.dim()), POSITIONS))

    return pool


for _dims in (1, 2, 3):
    rule(
        f"max_pool{_dims}d", f"max_pool{_dims}d_with_indices", f"avg_pool{_dims}d", f"_adaptive_avg_pool{_dims}d",
        f"adaptive_avg_pool{_dims}d", f"adaptive_max_pool{_dims}d", f"upsample_nearest{_dims}d",
        f"_upsample_nearest_exact{_dims}d",
    )(_pool(_dims))  # fmt: skip
rule("upsample_linear1d")(_pool(1))
rule("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")(_pool(2))
rule("upsample_trilinear3d")(_pool(3))


# Moves


@rule(
    "cat", "stack", "index_select", "gather", "roll", "flip", "repeat", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "expand_copy", "view_copy", "select_scatter", "slice_scatter",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "index", "rot90", "tril", "triu",
)  # fmt: skip
def _move(mode: ScalingMode, call: Call) -> Any:
    """The labels move as the numbers do; ``tril`` and ``triu`` leave zeros, whose label is then ``FIXED``."""
    return mode.moved(call) if call.result_is_floating else NotImplemented


@rule("constant_pad_nd")
def _pad(mode: ScalingMode, call: Call) -> Any:
    if not call.result_is_floating:
        return NotImplemented
    label = ANY if call.arg(2, 0) == 0 else FIXED
    (planes,) = mode.moved(Call(call.func, (*call.args[:2], float(label)), {}, call.result))
    return [planes]


@rule("copy")
def _copy(mode: ScalingMode, call: Call) -> Any:
    if call.arg(0).is_floating_point() != call.arg(1).is_floating_point():
        return NotImplemented
    return each(mode.of(call.arg(1)))


@rule("zeros", "zeros_like", "new_zeros", "zero", "empty", "empty_like", "new_empty", "empty_strided")
@rule("new_empty_strided")
def _zeros(mode: ScalingMode, call: Call) -> Shadows:  # noqa: ARG001
    """Memory that isn't written yet is no value."""
    return each(any_scale())


@rule("fill")
def _fill(mode: ScalingMode, call: Call) -> Any:
    value = call.arg(1)
    if isinstance(value, Tensor):
        return NotImplemented
    return each(any_scale() if value == 0 else mode.unknown(call.arg(0))[0])


@rule("ones", "ones_like", "new_ones", "full", "full_like", "new_full", "arange", "scalar_tensor", "linspace", "eye")
def _constant(mode: ScalingMode, call: Call) -> Shadows:  # noqa: ARG001
    return [None]
