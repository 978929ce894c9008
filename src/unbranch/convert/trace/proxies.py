"""Traced values that return plain numbers for whatever is the same for all inputs: rank, channels, fixed sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import fx

from unbranch.convert.trace.casts import NeedsNumberError
from unbranch.convert.trace.type_checks import TypeChecked
from unbranch.graph.operations import AUGMENTED_ASSIGNMENTS


class _Shape(tuple[Any, ...]):
    """A traced shape: plain numbers for sizes that are the same for all inputs, proxies for the others."""

    __class__ = property(lambda _self: torch.Size)  # for isinstance

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return _Shape(part) if isinstance(index, slice) else part

    def numel(self) -> Any:
        """Return the product of the sizes."""
        return reduce(operator.mul, self, 1)


class Value(TypeChecked, fx.Proxy):
    """A traced value with plain numbers for its rank, its channels and everything else that is the same for all inputs.

    ``+=`` and the like, and assignments to items, are recorded as the in-place operations that they are.
    """

    def _known(self) -> Any:
        tracer: Any = self.tracer
        return tracer.known(self.node)

    def _example(self) -> torch.Tensor | None:
        """Return a shape-only tensor of the first size, if the value is known to be a tensor."""
        known = self._known()
        return known[0] if known is not None and isinstance(known[0], torch.Tensor) else None

    def _constant(self, name: str) -> Any:
        """Return an attribute of a value that is computed from parameters alone; a proxy for other values."""
        known = self._known()
        if known is not None and known[0] is known[1] and isinstance(known[0], torch.Tensor):
            tracer: Any = self.tracer
            device = tracer.device_of(self.node) if name in ("device", "is_cuda") else None
            if device is None:
                return getattr(known[0], name)
            return device if name == "device" else device.type == "cuda"
        return fx.proxy.Attribute(self, name)

    @property
    def shape(self) -> Any:
        """The shape, with plain numbers where known."""
        known = self._known()
        if known is None or not all(isinstance(v, torch.Tensor) for v in known):
            return fx.proxy.Attribute(self, "shape")
        a, b = known
        if a.dim() != b.dim():
            return fx.proxy.Attribute(self, "shape")
        if tuple(a.shape) == tuple(b.shape):
            return _Shape(a.shape)
        whole: Any = fx.proxy.Attribute(self, "shape")
        return _Shape(n if n == m else whole[j] for j, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)))

    def size(self, dim: int | None = None) -> Any:
        """Return the shape or one size, with plain numbers where known."""
        if self._example() is None:
            return self.tracer.create_proxy("call_method", "size", (self,) if dim is None else (self, dim), {})
        return self.shape if dim is None else self.shape[dim]

    @property
    def ndim(self) -> Any:
        """The rank, as a plain number if known."""
        example = self._example()
        return fx.proxy.Attribute(self, "ndim") if example is None else example.dim()

    def dim(self) -> Any:
        """Return the rank, as a plain number if known."""
        example = self._example()
        return self.tracer.create_proxy("call_method", "dim", (self,), {}) if example is None else example.dim()

    ndimension = dim

    @property
    def device(self) -> Any:
        """The device; a plain value for constants."""
        return self._constant("device")

    @property
    def dtype(self) -> Any:
        """The dtype; a plain value for constants."""
        return self._constant("dtype")

    @property
    def is_cuda(self) -> Any:
        """Whether it is on a GPU; a plain value for constants."""
        return self._constant("is_cuda")

    def __len__(self) -> int:
        length = self._length()
        if length is None:
            self._count_conversion()
            raise NeedsNumberError("a length that depends on the input must be a plain number")
        return length

    def _count_conversion(self) -> None:
        tracer: Any = self.tracer
        tracer.conversions += 1  # the forward may catch the error

    def __iter__(self) -> Any:
        length = self._length()
        whole: Any = self
        return super().__iter__() if length is None else iter([whole[j] for j in range(length)])

    def _length(self) -> int | None:
        known = self._known()
        if known is None or not all(isinstance(v, torch.Tensor | tuple | list) for v in known):
            return None
        lengths = {len(v) for v in known if not isinstance(v, torch.Tensor) or v.dim()}
        return lengths.pop() if len(lengths) == 1 else None

    def __int__(self) -> int:
        self._count_conversion()
        raise NeedsNumberError("a value that depends on the input must be a plain number")

    __float__ = __int__

    def __str__(self) -> str:
        self._count_conversion()
        raise NeedsNumberError("a number that depends on the input is formatted as text")

    def __format__(self, format_spec: str) -> str:
        return self.__str__()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise AttributeError(f"{name} of a value that depends on the input can't be set")
        super().__setattr__(name, value)

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        whole: Any = self
        return whole // other, whole % other

    def __round__(self, ndigits: int | None = None) -> Any:
        return self.tracer.create_proxy("call_function", round, (self, *(() if ndigits is None else (ndigits,))), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in AUGMENTED_ASSIGNMENTS:
    setattr(Value, f"__{_name}__", _in_place(getattr(operator, _name)))
