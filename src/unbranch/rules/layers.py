"""Rules of PyTorch's layers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unbranch.algebra import average_pool, batch_norm_scale_shift, convolution, transposed_convolution
from unbranch.errors import InexactError
from unbranch.graph.float64 import Float64
from unbranch.grids import (
    AVG_POOL_LAYERS,
    CONV_LAYERS,
    NORM_LAYERS,
    PAD_LAYERS,
    TRANSPOSED_CONV_LAYERS,
    as_tuple,
    first_axis_first,
    ndim_of,
    padding_amounts,
)
from unbranch.large_kernels import LargeConv2d
from unbranch.rules.registry import LayerInput, register_rule
from unbranch.rules.value import Affine


def weight_of(module: Any) -> Tensor:
    """Return the weight that ``forward`` uses, with parametrizations and weight or spectral norm hooks applied."""
    with Float64() if hasattr(module, "parametrizations") else contextlib.nullcontext():
        weight: Tensor = module.weight
    for hook in module._forward_pre_hooks.values():
        if getattr(hook, "name", None) == "weight" and type(hook).__name__ == "WeightNorm":
            with Float64():
                weight = hook.compute_weight(module)
        elif getattr(hook, "name", None) == "weight" and type(hook).__name__ == "SpectralNorm":
            with Float64():
                weight = hook.compute_weight(module, do_power_iteration=False)
    if is_lazy(weight):
        raise InexactError("its parameters aren't initialised yet")
    return weight


def _conv_input(module: Any) -> LayerInput:
    return LayerInput(module.in_channels, len(module.kernel_size))


@register_rule(*CONV_LAYERS.values(), LargeConv2d, kind="linear", layer_input=_conv_input, arranged=True)
def _convolution(module: Any, x: Affine) -> Affine:
    lo, hi = padding_amounts(module.padding, module.dilation, module.kernel_size)
    return x.then(
        convolution(weight_of(module), module.bias, module.stride, lo, module.dilation, module.groups,
                    padding_after=hi, padding_mode=module.padding_mode)
    )  # fmt: skip


@register_rule(*TRANSPOSED_CONV_LAYERS.values(), kind="linear", layer_input=_conv_input)
def _transposed(module: Any, x: Affine) -> Affine:
    return x.then(
        transposed_convolution(weight_of(module), module.bias, module.stride, module.padding,
                               module.output_padding, module.groups, module.dilation)
    )  # fmt: skip


@register_rule(nn.Linear, kind="linear", layer_input=lambda m: LayerInput(m.in_features, 0, -1), arranged=True)
def _linear(module: Any, x: Affine) -> Affine:
    return x.then(convolution(weight_of(module), module.bias), channel_axis=-1)


def _norm_input(module: Any) -> LayerInput:
    ndim = ndim_of(module, NORM_LAYERS)
    return LayerInput(module.num_features, 0 if ndim in (None, 1) else ndim)  # nn.BatchNorm1d also takes (B, C)


@register_rule(*NORM_LAYERS.values(), nn.SyncBatchNorm, layer_input=_norm_input, arranged=True)
def batch_norm(module: Any, x: Affine) -> Affine:
    """Rule of layers with the attributes of a batch norm."""
    if module.running_mean is None or module.running_var is None:
        raise InexactError("its statistics exist only in training (track_running_stats=False)")
    if is_lazy(module.running_mean) or (module.weight is not None and is_lazy(module.weight)):
        raise InexactError("its parameters aren't initialised yet")
    m = module
    return x.scaled(*batch_norm_scale_shift(m.running_mean, m.running_var, m.weight, m.bias, m.eps, dtype=x.dtype))


@register_rule(*AVG_POOL_LAYERS.values())
def _average_pool(module: Any, x: Affine) -> Affine:
    ndim = cast(int, ndim_of(module, AVG_POOL_LAYERS))
    return pooled(
        x, ndim, module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad,
        getattr(module, "divisor_override", None),
    )  # fmt: skip


def pooled(
    x: Affine,
    ndim: int,
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Affine:
    """Return the value after average pooling.

    Raises:
        InexactError: if the divisor isn't the same everywhere.
    """
    size, padding = as_tuple(size, ndim), as_tuple(padding, ndim)
    stride = size if stride is None or stride == [] else as_tuple(stride, ndim)
    if ceil_mode:
        raise InexactError("an average pool with ceil_mode=True averages over fewer points at the edge")
    if any(padding) and not count_include_pad and divisor is None:
        raise InexactError("an average pool that doesn't count its padding averages over fewer points at the edge")
    return x.then(average_pool(x.channels, size, stride, padding, divisor=divisor, device=x.device, dtype=x.dtype))


@register_rule(
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    kind="view", arranged=True,
)  # fmt: skip
def _identity(_module: Any, x: Affine) -> Affine:
    return x


def padded(x: Affine, amounts: Sequence[int], padding_mode: str = "zeros", value: float = 0.0) -> Affine:
    """Return the value padded by amounts in ``F.pad``'s order."""
    pairs = first_axis_first(amounts)
    if x.channel_axis == -1 or any(not isinstance(a, int) for a in amounts):
        raise InexactError("padding of another axis, or by an amount that depends on the input")
    ndim = max(x.ndim, len(pairs))
    if x.ndim and len(pairs) > x.ndim:
        raise InexactError("padding of the channel axis")
    pairs = ((0, 0),) * (ndim - len(pairs)) + pairs
    return x.padded([a for a, _ in pairs], [b for _, b in pairs], float(value), padding_mode)


for _mode, _layers in PAD_LAYERS.items():
    _constant = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d) if _mode == "zeros" else ()

    @register_rule(*_layers.values(), *_constant)
    def _pad(module: Any, x: Affine, padding_mode: str = _mode) -> Affine:
        return padded(x, tuple(module.padding), padding_mode, float(getattr(module, "value", 0.0)))


def parameter_numbers(module: nn.Module) -> int:
    """Return the size of a layer's parameters and floating-point buffers, including its parametrizations."""
    tensors = [*module._parameters.values(), *module._buffers.values()]
    for child in (getattr(module, "parametrizations", None), *getattr(module, "parametrizations", {}).values()):
        tensors += [] if child is None else [*child._parameters.values(), *child._buffers.values()]
    return sum(t.numel() for t in tensors if t is not None and not is_lazy(t) and t.is_floating_point())
