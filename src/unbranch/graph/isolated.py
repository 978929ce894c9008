"""Run modules with writes into outside tensors redirected to private copies.

PyTorch counts the writes into a tensor (``_version``), so writes are detected by their effect rather than by the name
of a function. Copies belong to storages: all views of a storage see what is written through any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.immutable_collections import immutable_list
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_map

from unbranch.graph.memory import PrivateCopy, PrivateMemory, geometry_of, untyped_storage_of
from unbranch.graph.operations import LENDS_MEMORY, TRAINED_NORMS, VIEW_ATTRIBUTES

_METADATA = {
    "size", "dim", "ndimension", "stride", "numel", "nelement", "storage_offset", "is_floating_point", "is_complex",
    "get_device", "is_contiguous", "__len__", "__hash__", "is_tensor",
}  # fmt: skip  # read off a tensor without its values: only for speed
_GRADIENTS = {"requires_grad_", "retain_grad"}
# Functions that write, or let other code write, without counting.
_UNCOUNTED = TRAINED_NORMS | LENDS_MEMORY | {"batch_norm", "_batch_norm_impl_index", "instance_norm"}


class Isolated(TorchFunctionMode):
    """Redirect writes into outside tensors to private copies, which later reads of the same run see.

    An outside tensor is copied when it is used. The copy is discarded after the call, unless the call wrote into it or
    returned a view of it. Parameters and buffers of a module that runs under this mode stay bit for bit unchanged;
    ``wrote`` says whether a write was redirected. The mode applies to its own thread. Redirected writes carry no
    gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wrote = False  # into an outside tensor
        self._nested = False
        self._memory = PrivateMemory(self.stored)
        self._rebound: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> Any:
        self._nested = any(type(mode) is type(self) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]
        self._memory, self._rebound, self.wrote = PrivateMemory(self.stored), {}, False
        return super().__enter__()  # type: ignore[no-untyped-call]

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of the copy of a tensor of ``dtype``."""
        return dtype

    def argument(self, value: Any) -> Any:
        """Return what a function receives in place of an argument that isn't a tensor."""
        return value

    def call(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], originals: Sequence[Any]) -> Any:
        """Call a function on private tensors; ``originals`` are the caller's positional arguments."""
        del originals
        return func(*args, **kwargs)

    def directly(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], call: _Call) -> Any:
        """Return the result of a function that needs no private copies, since it writes nothing; None for others."""

    def values(self, result: Any) -> Any:
        """Return a result with outside tensors, such as parameters, replaced by their values in this run."""
        with torch._C.DisableTorchFunction():
            return tree_map(lambda v: _Call(self).given(v) if isinstance(v, Tensor) else v, result)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if self._nested:
            return func(*args, **kwargs)
        if name in ("__get__", "__set__"):
            attribute = getattr(getattr(func, "__self__", None), "__name__", "")
            if attribute not in VIEW_ATTRIBUTES:
                return self._attribute(func, name, args)
        elif name in _METADATA:
            return func(*mapped(self._current, args), **kwargs)
        elif name in _GRADIENTS and not torch.is_grad_enabled():
            return args[0]
        return _Call(self).run(func, name, args, kwargs)

    def _attribute(self, func: Callable[..., Any], name: str, args: Sequence[Any]) -> Any:
        if name == "__set__" and not torch.is_grad_enabled() and not self._memory.owns(args[0]):
            return None  # the flags of an outside tensor don't change
        found = func(*mapped(self._current, args))
        return self.argument(found) if isinstance(found, torch.dtype) else found

    def _current(self, value: Any) -> Any:
        return self._rebound[id(value)][1] if id(value) in self._rebound else value


class _Call:
    """One call of a function: arguments are replaced before it, and written copies recorded after it."""

    def __init__(self, mode: Isolated) -> None:
        self.mode, self.memory = mode, mode._memory
        self.replaced: dict[int, tuple[Tensor, Tensor, Any]] = {}  # by id: original, copy, and the geometry of the copy
        self.watched: list[tuple[Tensor, int, PrivateCopy | None]] = []  # with the number of writes before the call

    def run(self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call the function on private tensors."""
        result = self.mode.directly(func, args, kwargs, self)
        if result is not None:
            return mapped(self._taken, result)
        given, named = mapped(self.given, tuple(args)), mapped(self.given, kwargs)
        try:
            result = self.mode.call(func, given, named, args)
        finally:
            self._keep(always=name in _UNCOUNTED)
        return mapped(self._taken, result)

    def given(self, value: Any) -> Any:
        """Return what the function receives in place of an argument."""
        if not isinstance(value, Tensor):
            return self.mode.argument(value)
        if id(value) not in self.replaced:
            self.replaced[id(value)] = (value, *self._private(self.mode._current(value)))
        return self.replaced[id(value)][1]

    def is_untouched(self, value: Any) -> bool:
        """Whether a value is an outside tensor that this run hasn't changed and that needs no gradient."""
        if not isinstance(value, Tensor) or self.mode._current(value) is not value:
            return False
        storage = untyped_storage_of(value)
        if storage is None or self.memory.owns(value) or value.is_neg() or value.is_complex():
            return False
        return not self.memory.has_copy(storage) and not (value.requires_grad and torch.is_grad_enabled())

    def _private(self, value: Tensor) -> tuple[Tensor, Any]:
        dtype = self.mode.stored(value.dtype)
        storage = untyped_storage_of(value)
        if storage is None or (value.requires_grad and torch.is_grad_enabled() and not self.memory.owns(value)):
            own = value.to(dtype) if value.dtype != dtype else value if storage is None else value.clone()
            if own is not value and storage is not None:
                self.watched.append((own, own._version, None))
            return own, None
        if self.memory.owns(value):
            copy = self.memory.copy_at(storage)
            if copy is not None and copy.kept is None:
                self.watched.append((value, _writes(value), copy))
            return (value if value.dtype == dtype else value.to(dtype)), None
        own, copy = self.memory.private(value, storage)
        self.watched.append((own, own._version, copy))
        return own, geometry_of(own)

    def _keep(self, *, always: bool) -> None:
        for own, before, copy in self.watched:
            if always or _writes(own) != before or before < 0:
                self.mode.wrote |= before >= 0 and _writes(own) != before
                if copy is not None:
                    copy.kept = copy.live()
                elif not always:
                    raise RuntimeError("a tensor that needs gradients is written in place; run it without gradients")
        for original, own, geometry in self.replaced.values():
            if geometry is not None and geometry_of(own) != geometry:  # resize_, t_, or a new .data
                self.mode._rebound[id(original)] = (original, own)
                self.mode.wrote = True
                self.memory.own(own)

    def _taken(self, value: Any) -> Any:
        """Return what the caller receives; a parameter that was written to is still that parameter."""
        if not isinstance(value, Tensor):
            return value
        for original, own, _ in self.replaced.values():
            if own is value and isinstance(original, torch.nn.Parameter) and original is not value:
                protected_tensors = any(o is own and _writes(o) == before for o, before, _ in self.watched)
                return value if protected_tensors else original
        self.memory.own(value)
        return value


def _writes(value: Tensor) -> int:
    """Return how many writes PyTorch has counted; -1 if it doesn't count."""
    return -1 if value.is_inference() else value._version


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to all leaves of nested tuples, lists, dictionaries and slices."""
    if isinstance(value, tuple):
        items = [mapped(function, v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) in (list, immutable_list):  # graphs hold arguments in the latter
        return [mapped(function, v) for v in value]
    if isinstance(value, dict):
        return {key: mapped(function, v) for key, v in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(function, v) for v in (value.start, value.stop, value.step)))
    return function(value)
