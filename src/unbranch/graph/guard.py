"""Modes that raise when code writes to existing tensors or draws random numbers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from unbranch.graph.operations import LENDS_MEMORY, TRAINED_NORMS
from unbranch.graph.state import tensors_of


class StateWriteError(Exception):
    """Raised before a forward writes into a parameter, a buffer or another tensor that existed before it."""


class RandomDrawError(Exception):
    """Raised when a forward draws random numbers."""


class TooLongError(Exception):
    """Raised when a forward launches more operations than allowed."""


class Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raise before a protected storage is written to, and after random numbers were drawn.

    Args:
        protected: storages, by number.
        most: how many operations may be launched; None for any number.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping would import torch._dynamo, which takes seconds

    def __init__(self, protected: set[int], most: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._protected, self._left = protected, most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise TooLongError(str(func))
        mutable, seeded = _kind_of(func)
        if self._protected and mutable:
            for tensor in _written(func, args, kwargs):
                if storage_of(tensor) in self._protected:
                    raise StateWriteError(str(func))
        if not seeded:
            return func(*args, **kwargs)
        before = torch.get_rng_state()
        result = func(*args, **kwargs)
        if not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
            raise RandomDrawError(str(func))
        return result


class Lent(TorchFunctionMode):
    """Raise before other code gets access to the memory of a protected tensor: PyTorch doesn't see its writes."""

    def __init__(self, protected: set[int]) -> None:
        super().__init__()
        self._protected = protected

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        lent = args[0] if args and getattr(func, "__name__", "") in LENDS_MEMORY else None
        if isinstance(lent, Tensor) and storage_of(lent) in self._protected:
            raise StateWriteError(str(func))
        return func(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=4096)
def _kind_of(func: Any) -> tuple[bool, bool]:
    """Whether an operation writes to an argument, and whether it may draw random numbers."""
    return func._schema.is_mutable or func._schema.name in _TRAINED, torch.Tag.nondeterministic_seeded in func.tags


_TRAINED = {f"aten::{norm}" for norm in TRAINED_NORMS}


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    if func._schema.name in _TRAINED:
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        found = [given.get("running_mean"), given.get("running_var")] if given.get("training") else []
        yield from (v for v in found if isinstance(v, Tensor))
        return
    for j, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[j] if j < len(args) else kwargs.get(argument.name)
            yield from (v for v in tree_flatten(value)[0] if isinstance(v, Tensor))


def storage_of(tensor: Tensor) -> int:
    """Return a number that identifies the memory of a tensor; 0 if it has none of its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse and other tensors without a single storage
        return 0


@contextlib.contextmanager
def protected_tensors(module: nn.Module) -> Iterator[None]:
    """Protect the tensors of a module while its code runs on shape-only inputs.

    A write raises ``StateWriteError`` before it happens. Data, gradients, hooks and ``requires_grad`` that were
    replaced are restored at the end.
    """
    tensors = {id(t): t for part in module.modules() for t in tensors_of(part)}
    with torch.no_grad():
        kept = [(t, t.detach(), *_marks(t)) for t in tensors.values()]
    try:
        with Guard({storage_of(t) for t in tensors.values()} - {0}):
            yield
    finally:
        for tensor, data, wanted, gradient, hooks in kept:
            if tensor.dtype != data.dtype or tensor.shape != data.shape or storage_of(tensor) != storage_of(data):
                tensor.data = data
            if not tensor.is_leaf:
                continue
            if tensor.requires_grad != wanted:
                tensor.requires_grad_(wanted)
            if tensor.grad is not gradient:
                tensor.grad = gradient
            if dict(tensor._backward_hooks or {}) != hooks:
                tensor._backward_hooks.clear()  # type: ignore[union-attr]
                tensor._backward_hooks.update(hooks)  # type: ignore[union-attr]


def _marks(tensor: Tensor) -> tuple[bool, Tensor | None, dict[Any, Any]]:
    """Return what autograd stores with a tensor."""
    return tensor.requires_grad, tensor.grad if tensor.is_leaf else None, dict(tensor._backward_hooks or {})
