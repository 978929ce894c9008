"""Running modules without a trace: what a run writes into tensors from outside goes to private copies.

PyTorch counts the writes into a tensor (``_version``), so a write is noticed by what it does and not by a function's
name. Copies belong to storages, so all views of one storage see what is written through any of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import reductions
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_map

from unbranch.graph.operations import LENDS_MEMORY, TRAINED_NORMS, VIEW_ATTRIBUTES

_METADATA = {
    "size", "dim", "ndimension", "stride", "numel", "nelement", "storage_offset", "is_floating_point", "is_complex",
    "get_device", "is_contiguous", "__len__", "__hash__", "is_tensor",
}  # fmt: skip  # read off a tensor without its values: only for speed
_GRADIENTS = {"requires_grad_", "retain_grad"}
# These write, or let others write, without counting.
_UNCOUNTED = TRAINED_NORMS | LENDS_MEMORY | {"batch_norm", "_batch_norm_impl_index", "instance_norm"}
_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
_COMPLEX = {real: dtype for dtype, real in _REAL.items()}

StorageWeakRef: Any = reductions.StorageWeakRef


class Isolated(TorchFunctionMode):
    """Redirect writes into tensors from outside to private copies, which later reads of the same run see.

    A tensor from outside is copied when it is used. The copy is forgotten after the call, unless the call wrote into it
    or returned a view of it. Parameters and buffers of a module that runs under this mode stay bit for bit as they
    were; ``wrote`` says whether a write was redirected. The mode belongs to its thread; writes carry no gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wrote = False  # into a tensor from outside
        self._nested = False
        self._memory = _Memory(self.stored)
        self._rebound: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> Any:
        self._nested = any(type(mode) is type(self) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]
        self._memory, self._rebound, self.wrote = _Memory(self.stored), {}, False
        return super().__enter__()  # type: ignore[no-untyped-call]

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the copy of a tensor of ``dtype``."""
        return dtype

    def argument(self, value: Any) -> Any:
        """What a function sees in place of an argument that is no tensor."""
        return value

    def call(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], originals: Sequence[Any]) -> Any:
        """Call a function on private tensors; ``originals`` are the caller's positional arguments."""
        del originals
        return func(*args, **kwargs)

    def directly(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], call: _Call) -> Any:
        """The result of a function that writes nothing, and needs no private copies therefore, or nothing."""

    def values(self, result: Any) -> Any:
        """A result of the run with tensors from outside, such as a parameter, replaced by what the run made of them."""
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
            return None  # flags of a tensor from outside stay
        found = func(*mapped(self._current, args))
        return self.argument(found) if isinstance(found, torch.dtype) else found

    def _current(self, value: Any) -> Any:
        return self._rebound[id(value)][1] if id(value) in self._rebound else value


class _Call:
    """One call of a function: its arguments replaced, then what was written kept."""

    def __init__(self, mode: Isolated) -> None:
        self.mode, self.memory = mode, mode._memory
        self.replaced: dict[int, tuple[Tensor, Tensor, Any]] = {}  # by id: original, copy, the copy's geometry
        self.watched: list[tuple[Tensor, int, _Copy | None]] = []  # and the number of writes before

    def run(self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
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
        """What the function gets in place of an argument."""
        if not isinstance(value, Tensor):
            return self.mode.argument(value)
        if id(value) not in self.replaced:
            self.replaced[id(value)] = (value, *self._private(self.mode._current(value)))
        return self.replaced[id(value)][1]

    def is_untouched(self, value: Any) -> bool:
        """Whether a value is a tensor from outside that this run hasn't changed, and that needs no gradients."""
        if not isinstance(value, Tensor) or self.mode._current(value) is not value:
            return False
        storage = _storage_of(value)
        if storage is None or self.memory.owns(value) or value.is_neg() or value.is_complex():
            return False
        return not self.memory.has_copy(storage) and not (value.requires_grad and torch.is_grad_enabled())

    def _private(self, value: Tensor) -> tuple[Tensor, Any]:
        dtype = self.mode.stored(value.dtype)
        storage = _storage_of(value)
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
        return own, _geometry(own)

    def _keep(self, *, always: bool) -> None:
        for own, before, copy in self.watched:
            if always or _writes(own) != before or before < 0:
                self.mode.wrote |= before >= 0 and _writes(own) != before
                if copy is not None:
                    copy.kept = copy.live()
                elif not always:
                    raise RuntimeError("a tensor that needs gradients is written in place; run it without gradients")
        for original, own, geometry in self.replaced.values():
            if geometry is not None and _geometry(own) != geometry:  # resize_, t_, a new .data
                self.mode._rebound[id(original)] = (original, own)
                self.mode.wrote = True
                self.memory.own(own)

    def _taken(self, value: Any) -> Any:
        """What the caller gets: a written parameter is still that parameter, since modules check."""
        if not isinstance(value, Tensor):
            return value
        for original, own, _ in self.replaced.values():
            if own is value and isinstance(original, torch.nn.Parameter) and original is not value:
                unwritten = any(o is own and _writes(o) == before for o, before, _ in self.watched)
                return value if unwritten else original
        self.memory.own(value)
        return value


@dataclass
class _Copy:
    """The private copy of a storage: alive while a tensor uses it, or for the whole run once it is ``kept``."""

    source: StorageWeakRef
    weak: StorageWeakRef | None = None
    kept: Any = None
    filled: list[tuple[int, int]] = field(default_factory=list)  # numbers that were copied, or written since

    def live(self) -> Any:
        return None if self.weak is None else torch.UntypedStorage._new_with_weak_ptr(self.weak.cdata)


class _Memory:
    """Which storages belong to a run, and the copies of those that don't."""

    def __init__(self, stored: Callable[[torch.dtype], torch.dtype]) -> None:
        self._stored = stored
        self._copies: dict[tuple[int, torch.dtype], _Copy] = {}
        self._own: dict[int, tuple[StorageWeakRef, _Copy | None]] = {}  # a weak reference keeps its address from reuse
        self._limit = 4096

    def owns(self, value: Tensor) -> bool:
        storage = _storage_of(value)
        return storage is not None and storage._cdata in self._own

    def copy_at(self, storage: Any) -> _Copy | None:
        """The copy whose memory this is."""
        return self._own[storage._cdata][1]

    def has_copy(self, storage: Any) -> bool:
        """Whether there is a private copy of a storage that a tensor uses."""
        return any(key[0] == storage._cdata and copy.live() is not None for key, copy in self._copies.items())

    def own(self, value: Tensor, copy: _Copy | None = None) -> None:
        storage = _storage_of(value)
        if storage is None or storage._cdata in self._own:
            return
        self._own[storage._cdata] = (StorageWeakRef(storage), copy)
        if len(self._own) > self._limit:
            self._own = {key: entry for key, entry in self._own.items() if not entry[0].expired()}
            self._copies = {key: copy for key, copy in self._copies.items() if not copy.source.expired()}
            self._limit = max(4096, 2 * len(self._own))

    def private(self, value: Tensor, storage: Any) -> tuple[Tensor, _Copy]:
        """A tensor of the same geometry on the private copy of a storage, which is made where there is none."""
        real = _REAL.get(value.dtype, value.dtype)
        copy = self._copies.setdefault((storage._cdata, real), _Copy(StorageWeakRef(storage)))
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext():
            flat = self._flat(copy, storage, real, value.device)
            for start, stop in _missing(_extent(value), copy.filled):
                flat[start:stop].copy_(_on(storage, real, value.device, start, stop - start))
                copy.filled.append((start, stop))
            if value.is_complex():
                flat = flat.view(_COMPLEX[flat.dtype])
            own = flat.as_strided(value.size(), value.stride(), value.storage_offset())
            own = own.conj() if value.is_conj() else own
            return (torch._neg_view(own) if value.is_neg() else own), copy

    def _flat(self, copy: _Copy, storage: Any, real: torch.dtype, device: torch.device) -> Tensor:
        """The whole copy as one row, ``(numbers of the storage,)``; only what is ``filled`` has values."""
        size = storage.nbytes() // real.itemsize
        dtype, held = self._stored(real), copy.live()
        if held is not None:
            return _on(held, dtype, device, 0, size + size % 2)
        flat = torch.empty(size + size % 2, dtype=dtype, device=device)  # even, to be read as complex numbers
        copy.weak, copy.filled = StorageWeakRef(flat.untyped_storage()), []
        self.own(flat, copy)
        return flat


def _on(storage: Any, dtype: torch.dtype, device: torch.device, start: int, size: int) -> Tensor:
    """``size`` numbers of a storage."""
    return torch.empty(0, dtype=dtype, device=device).set_(storage, start, (size,), (1,))


def _storage_of(value: Tensor) -> Any:
    """A tensor's memory, or None where it has none of its own (sparse, quantised, fake, batched tensors)."""
    if value.layout != torch.strided or value.is_quantized:
        return None
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return None
    try:
        return value.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None


def _writes(value: Tensor) -> int:
    """How often PyTorch saw a write; -1 where it doesn't count."""
    return -1 if value.is_inference() else value._version


def _geometry(value: Tensor) -> Any:
    return value.shape, value.stride(), value.storage_offset(), value.untyped_storage()._cdata


def _extent(value: Tensor) -> tuple[int, int]:
    """First and last place, exclusive, of a tensor in its storage, in real numbers."""
    if value.numel() == 0:
        return 0, 0
    parts = 2 if value.is_complex() else 1
    start = int(value.storage_offset())
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return parts * start, parts * (start + last + 1)


def _missing(wanted: tuple[int, int], filled: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of an interval that no other covers."""
    start, stop = wanted
    for low, high in sorted(filled):
        if low >= stop:
            break
        if high > start:
            if low > start:
                yield start, low
            start = high
    if start < stop:
        yield start, stop


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to all values in nested tuples, lists, dictionaries and slices."""
    if isinstance(value, tuple):
        items = [mapped(function, v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is list:
        return [mapped(function, v) for v in value]
    if isinstance(value, dict):
        return {key: mapped(function, v) for key, v in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(function, v) for v in (value.start, value.stop, value.step)))
    return function(value)
