"""Run modules in float64 without copying them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unbranch.algebra.evaluate import convolve
from unbranch.graph.isolated import Isolated, mapped
from unbranch.grids import CONV_FUNCTIONS, as_tuple, last_axis_first

_CONVOLUTIONS = set(CONV_FUNCTIONS.values())
_READING = _CONVOLUTIONS | {F.linear}
_LAYERS = {  # names of functions that sum many products, and therefore round
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "inner", "addmm", "addbmm", "baddbmm", "addmv",
    "einsum", "tensordot", "chain_matmul", "multi_dot", "batch_norm", "layer_norm", "group_norm", "instance_norm",
    "rms_norm", "scaled_dot_product_attention", "multi_head_attention_forward", "sum", "mean", "cumsum", "fft_fftn",
}  # fmt: skip
_PIECE = 1 << 18  # elements
_CASTS = {
    "float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64,
    "cfloat": torch.complex64, "chalf": torch.complex32, "cdouble": torch.complex128,
}  # fmt: skip
_WIDE = (torch.float64, torch.complex128)


class Float64(Isolated):
    """Run with float64 in place of other floating-point dtypes, and complex128 in place of complex ones.

    Parameters are cast when they are used and the cast is discarded after the call, so a network needs no second copy.
    Writes into them, into buffers or through views go to private float64 copies (see ``Isolated``), and tensors that a
    forward makes are float64. Dtypes that it passes or reads are float64 as well; integers stay integers.

    Args:
        native: the dtype of the network, in which a cast would return the tensor itself.
    """

    def __init__(self, native: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._native = native

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """Return float64 for floating-point dtypes, complex128 for complex ones, and other dtypes unchanged."""
        return torch.float64 if dtype.is_floating_point else torch.complex128 if dtype.is_complex else dtype

    def argument(self, value: Any) -> Any:
        """Map dtypes as ``stored`` does."""
        return self.stored(value) if isinstance(value, torch.dtype) else value

    def call(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], originals: Sequence[Any]) -> Any:
        """Call a function; casts stay in float64, and results in PyTorch's default dtype become float64."""
        name = getattr(func, "__name__", "")
        if func in _CONVOLUTIONS:
            return _convolution(func, *args, **kwargs)
        if name in _CASTS:
            return self._cast(args[0], originals[0], _CASTS[name], kwargs, always=name.endswith("double"))
        if name == "type" and len(args) > 1:
            dtype, device = _type(originals[1])
            return self._cast(args[0], originals[0], dtype, device)
        if name == "view" and any(isinstance(v, torch.dtype) for v in (*originals[1:], *kwargs.values())):
            return self._reinterpreted(args[0], (*originals[1:], *kwargs.values())[0])
        result = func(*args, **kwargs)
        if name == "to":
            asked = [v for v in (*originals[1:], *kwargs.values()) if isinstance(v, torch.dtype)]
            return self._apart(result, args[0], originals[0], asked[0]) if asked else result
        if any(self._narrow(v) for v in _tensors(result)):
            result = self._widened(func, args, kwargs, result)
        return result

    def directly(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], call: Any) -> Any:
        """Call a layer's function, which writes nothing: weights are cast for this call, large ones in pieces."""
        if func not in _READING and (func is not F.batch_norm or (args[5:6] or [kwargs.get("training")])[0]):
            return None

        def given(value: Any) -> Any:
            if isinstance(value, Tensor) and call.is_untouched(value):
                return value.to(self.stored(value.dtype))
            return call.given(value)

        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if func in _READING and self._is_large(weight) and call.is_untouched(weight):
            named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            if (args[6] if len(args) > 6 else kwargs.get("groups", 1)) == 1:
                x, bias = given(named.pop("input")), given(named.pop("bias", None))
                return _in_pieces(func, x, named.pop("weight"), bias, args[3:], named)
        return self.call(func, mapped(given, tuple(args)), mapped(given, kwargs), args)

    def _is_large(self, weight: Any) -> bool:
        if not isinstance(weight, Tensor) or weight.numel() < 2 * _PIECE:
            return False
        return weight.device.type == "cpu" and self._narrow(weight)

    def _narrow(self, value: Tensor) -> bool:
        return value.dtype != self.stored(value.dtype)

    def _cast(
        self, x: Tensor, original: Tensor, dtype: torch.dtype, options: dict[str, Any], *, always: bool = False
    ) -> Tensor:
        result = x.to(dtype=self.stored(dtype), **options)
        return self._apart(result, x, original, dtype, always=always)

    def _apart(
        self, result: Tensor, x: Tensor, original: Tensor, dtype: torch.dtype, *, always: bool = False
    ) -> Tensor:
        """Return the result of a cast, in memory of its own if a run in the network's dtype would have copied."""
        own = original.dtype if original.dtype not in _WIDE or original is not x else self._native
        same = dtype in (own, own.to_complex() if own.is_floating_point else own)
        alias = result is x or (result.dtype == x.dtype and result._is_view() and result._base is x)
        return result.clone() if alias and not same and (always or dtype not in _WIDE) else result

    def _reinterpreted(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Evaluate ``x.view(dtype)`` between integers and floats on the bits of the network's own dtype."""
        floating = x.is_floating_point() or x.is_complex()
        if floating and (dtype.is_floating_point or dtype.is_complex):
            return x.view(self.stored(dtype))
        seen = (x.to(self._native) if x.is_floating_point() else x).view(dtype)
        return seen.to(self.stored(dtype))

    def _widened(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], result: Any) -> Any:
        """Compute a result in PyTorch's default dtype once more in float64: from constructors and integer arithmetic.

        Random numbers are drawn only once, so they are those of the network's own dtype.
        """
        tensors = list(_tensors((args, kwargs)))
        if not _draws(getattr(func, "__name__", "")) and not any(
            t.is_floating_point() or t.is_complex() for t in tensors
        ):
            dtype = next(self.stored(v.dtype) for v in _tensors(result) if self._narrow(v))
            for change in (_as_is, _integers_widened, _scalars_widened):
                arguments, named = mapped(change, (args, kwargs))
                try:
                    again = func(*arguments, **named, **({"dtype": dtype} if change is _as_is else {}))
                except Exception:  # a function that takes no such argument
                    continue
                if not any(self._narrow(v) for v in _tensors(again)):
                    return again
        return mapped(lambda v: v.to(self.stored(v.dtype)) if isinstance(v, Tensor) else v, result)


class PerturbedRounding(Float64):
    """Run in float64 with perturbed rounding: results of layers are off by up to ``amount`` of their largest value.

    An output that changes by much more depends on rounding, for example because two selected boxes tie.
    """

    def __init__(self, native: torch.dtype = torch.float32, amount: float = 1e-14) -> None:
        super().__init__(native)
        self._amount = amount

    def call(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], originals: Sequence[Any]) -> Any:
        """Call a function as ``Float64`` does and perturb the results of layers."""
        result = super().call(func, args, kwargs, originals)
        return self._shaken(result) if getattr(func, "__name__", "") in _LAYERS else result

    def _is_large(self, weight: Any) -> bool:  # noqa: ARG002
        return False  # so that every layer goes through ``call``

    def _shaken(self, result: Any) -> Any:
        if not isinstance(result, Tensor) or not result.is_floating_point() or not result.numel():
            return result
        # Deterministic, since drawing random numbers would advance the generators.
        pattern = torch.arange(result.numel(), dtype=torch.float64, device=result.device).mul_(12.9898).sin_()
        return result + (self._amount * result.abs().max()) * pattern.view(result.shape)


def _in_pieces(
    func: Callable[..., Any], x: Tensor, weight: Tensor, bias: Tensor | None, more: Any, named: dict[str, Any]
) -> Tensor:
    """Compute a convolution or linear layer some output channels at a time, so that no weight is cast as a whole."""
    rows = max(1, _PIECE // weight[0].numel())
    weights = torch.split(weight, rows)
    biases = [None] * len(weights) if bias is None else torch.split(bias, rows)
    pieces = zip(weights, biases, strict=True)
    results = [func(x, w.double(), b, *more, **named) for w, b in pieces]
    return torch.cat(results, -1 if func is F.linear else 1 - weight.dim())


def _convolution(
    func: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Compute a convolution; grouped ones in a form that is fast in float64."""
    n = weight.dim() - 2
    if groups == 1 or isinstance(padding, str) or input.dim() != n + 2 or weight.is_complex():
        return func(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]
    amounts = last_axis_first((p, p) for p in as_tuple(padding, n))
    return convolve(F.pad(input, amounts), weight, bias, as_tuple(stride, n), as_tuple(dilation, n), groups)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _as_is(value: Any) -> Any:
    return value


def _integers_widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def _scalars_widened(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value


def _type(kind: Any) -> tuple[torch.dtype, dict[str, Any]]:
    """Return the dtype and device that ``Tensor.type`` is given: a dtype, ``torch.FloatTensor`` or its name."""
    if isinstance(kind, torch.dtype):
        return kind, {}
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
    module = torch.cuda if ".cuda." in name else torch
    return getattr(module, name.rpartition(".")[2]).dtype, {"device": "cuda" if module is torch.cuda else "cpu"}


@cache
def _draws(name: str) -> bool:
    """Whether a function draws random numbers, according to the tags of PyTorch's operators."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, o).tags for o in packet.overloads())
