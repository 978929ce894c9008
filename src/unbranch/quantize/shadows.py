"""Run a network with a shadow beside its memory: for every number, what is known about it.

A shadow belongs to a storage and has one value for each of its elements, so views, slices, reshapes and writes into
views need no rules: the shadow of a tensor is the same view of the shadow of its memory. The operations seen are those
that PyTorch's dispatcher runs, so it doesn't matter whether a layer, a function or an operator called them.
"""

from __future__ import annotations

import contextlib
import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map

from unbranch.graph.guard import storage_of
from unbranch.quantize.calls import Call, CallMode, base_name, filled, is_mutable, tensors_in


@dataclass(frozen=True, eq=False)
class _Shadow:
    storage: StorageWeakRef
    itemsize: int
    planes: tuple[Tensor, ...]

    @property
    def expired(self) -> bool:
        return bool(self.storage.expired())  # type: ignore[no-untyped-call]


class ShadowMode(CallMode):  # type: ignore[no-untyped-call]
    """Runs operations and, for each, a rule that computes the shadow of its result.

    Shadows are float64 arrays in ``planes`` planes. Subclasses have the rules and the shadow of memory that no rule
    wrote.
    """

    planes = 1

    def __init__(self) -> None:
        super().__init__()
        self._shadows: dict[int, _Shadow] = {}

    # Memory

    def read(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the shadow of a tensor, one array of its shape for each plane."""
        found = self._shadow_of(tensor)
        if found is None:
            return tuple(p.expand(tensor.shape) for p in self.unknown(tensor))
        return tuple(p.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()) for p in found.planes)

    def write(self, tensor: Tensor, planes: Sequence[Tensor]) -> None:
        """Set the shadow of a tensor; arrays are broadcast."""
        found = self._shadow_of(tensor)
        if found is None:
            return
        for place, values in zip(found.planes, planes, strict=True):
            view = place.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            values = values.expand(tensor.shape)
            for axis, stride in enumerate(tensor.stride()):
                if not stride and tensor.shape[axis] > 1:
                    view, values = view.narrow(axis, 0, 1), values.narrow(axis, 0, 1)
            view.copy_(values.clone())

    def _shadow_of(self, tensor: Tensor) -> _Shadow | None:
        key = storage_of(tensor)
        if not key:
            return None
        found = self._shadows.get(key)
        if tensor.is_complex() or tensor.is_neg():
            if found is not None:
                self.reinterpreted(found.planes)
            return None
        storage = tensor.untyped_storage()
        size = storage.nbytes() // tensor.itemsize
        if found is None or found.expired or found.planes[0].numel() * found.itemsize < storage.nbytes():
            planes = tuple(p.expand(size).clone() for p in self.initial(tensor, size))
            found = self._shadows[key] = _Shadow(_weak(storage), tensor.itemsize, planes)
        if found.itemsize != tensor.itemsize:  # the bits are read as another type
            self.reinterpreted(found.planes)
            return None
        return found

    # What subclasses define

    @abstractmethod
    def unknown(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the shadow of one number of which nothing is known, ``()`` for each plane."""

    def initial(self, tensor: Tensor, size: int) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return the shadow of ``size`` numbers in memory that no rule wrote, ``(size,)`` or ``()`` for each plane."""
        return self.unknown(tensor)

    def reinterpreted(self, planes: tuple[Tensor, ...]) -> None:
        """Handle memory that is read as numbers of another type; its shadow may be changed in place."""

    @abstractmethod
    def rule(self, name: str) -> Callable[[Call], Any] | None:
        """Return the rule of an operation: it returns a shadow for each result (None: unknown), or NotImplemented."""

    def without_rule(self, call: Call) -> None:
        """Handle an operation without a rule; its results are unknown."""

    # Dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = set() if is_mutable(func) else {storage_of(t) for t in tensors_in((args, kwargs))}
        result = func(*args, **kwargs)
        results = [t for t in tensors_in(result) if storage_of(t) not in known]
        returns = list(tensors_in(result))
        if returns and not results:  # views
            return result
        with torch._C.DisableTorchFunction():
            self._follow(filled(func, args, kwargs, result), returns, known)
        return result

    def _follow(self, call: Call, returns: list[Tensor], known: set[int]) -> None:
        name = base_name(call.func)
        rule = None if call.func._overloadname == "out" else self.rule(name)
        shadows: Any = NotImplemented
        if rule is not None:
            with contextlib.suppress(RuntimeError, IndexError, TypeError, ValueError):  # unusual arguments
                shadows = rule(call)
        if shadows is NotImplemented:
            self.without_rule(call)
            shadows = [None] * len(returns)
            if is_mutable(call.func):
                returns = [*returns, *tensors_in((call.args, call.kwargs))]
                shadows = [None] * len(returns)
        for tensor, planes in zip(returns, [*shadows, *[None] * (len(returns) - len(shadows))], strict=True):
            if storage_of(tensor) not in known:
                self.write(tensor, self.unknown(tensor) if planes is None else planes)

    def moved(self, call: Call, change: Callable[[Any], Any] = lambda value: value) -> list[tuple[Tensor, ...]]:
        """Return the shadows of an operation that only moves numbers, by running it on the shadows of its input.

        Args:
            call: the operation; its integer tensors are indices.
            change: replaces other arguments, such as the value that pads.
        """

        def given(plane: int, value: Any) -> Any:
            if isinstance(value, Tensor):
                shadow = self.read(value)[plane] if value.is_floating_point() else value.cpu()
                return shadow.clone() if is_mutable(call.func) else shadow
            return change(value)

        runs = [
            list(tensors_in(call.func(*tree_map(functools.partial(given, p), call.args),
                                      **tree_map(functools.partial(given, p), call.kwargs))))
            for p in range(self.planes)
        ]  # fmt: skip
        return list(zip(*runs, strict=True))


def _weak(storage: Any) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]
