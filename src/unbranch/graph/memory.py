"""Private copies of storages, which all views of a storage share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import reductions

_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


_COMPLEX = {real: dtype for dtype, real in _REAL.items()}


StorageWeakRef: Any = reductions.StorageWeakRef


@dataclass
class PrivateCopy:
    """The private copy of a storage: alive while a tensor uses it, or for the whole run once it is ``kept``."""

    source: StorageWeakRef
    weak: StorageWeakRef | None = None
    kept: Any = None
    filled: list[tuple[int, int]] = field(default_factory=list)  # ranges that were copied or written

    def live(self) -> Any:
        """Return the storage of the copy, or None if it was freed."""
        return None if self.weak is None else torch.UntypedStorage._new_with_weak_ptr(self.weak.cdata)


class PrivateMemory:
    """The storages that belong to a run, and private copies of those that don't."""

    def __init__(self, stored: Callable[[torch.dtype], torch.dtype]) -> None:
        self._stored = stored
        self._copies: dict[tuple[int, torch.dtype], PrivateCopy] = {}
        self._own: dict[
            int, tuple[StorageWeakRef, PrivateCopy | None]
        ] = {}  # a weak reference keeps the address from being reused
        self._limit = 4096

    def owns(self, value: Tensor) -> bool:
        """Whether a tensor belongs to the run."""
        storage = untyped_storage_of(value)
        return storage is not None and storage._cdata in self._own

    def copy_at(self, storage: Any) -> PrivateCopy | None:
        """Return the copy that has this memory."""
        return self._own[storage._cdata][1]

    def has_copy(self, storage: Any) -> bool:
        """Whether a private copy of a storage exists that a tensor still uses."""
        return any(key[0] == storage._cdata and copy.live() is not None for key, copy in self._copies.items())

    def own(self, value: Tensor, copy: PrivateCopy | None = None) -> None:
        """Record that a tensor belongs to the run."""
        storage = untyped_storage_of(value)
        if storage is None or storage._cdata in self._own:
            return
        self._own[storage._cdata] = (StorageWeakRef(storage), copy)
        if len(self._own) > self._limit:
            self._own = {key: entry for key, entry in self._own.items() if not entry[0].expired()}
            self._copies = {key: copy for key, copy in self._copies.items() if not copy.source.expired()}
            self._limit = max(4096, 2 * len(self._own))

    def private(self, value: Tensor, storage: Any) -> tuple[Tensor, PrivateCopy]:
        """Return a tensor of the same geometry on the private copy of a storage, which is made if there is none."""
        real = _REAL.get(value.dtype, value.dtype)
        copy = self._copies.setdefault((storage._cdata, real), PrivateCopy(StorageWeakRef(storage)))
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

    def _flat(self, copy: PrivateCopy, storage: Any, real: torch.dtype, device: torch.device) -> Tensor:
        """Return the whole copy as a vector of all elements of the storage; only ranges in ``filled`` have values."""
        size = storage.nbytes() // real.itemsize
        dtype, held = self._stored(real), copy.live()
        if held is not None:
            return _on(held, dtype, device, 0, size + size % 2)
        flat = torch.empty(size + size % 2, dtype=dtype, device=device)  # even, so that it can be viewed as complex
        copy.weak, copy.filled = StorageWeakRef(flat.untyped_storage()), []
        self.own(flat, copy)
        return flat


def _on(storage: Any, dtype: torch.dtype, device: torch.device, start: int, size: int) -> Tensor:
    """Return ``size`` elements of a storage as a vector."""
    return torch.empty(0, dtype=dtype, device=device).set_(storage, start, (size,), (1,))


def untyped_storage_of(value: Tensor) -> Any:
    """Return a tensor's storage, or None if it has none of its own (sparse, quantised, fake and batched tensors)."""
    if value.layout != torch.strided or value.is_quantized:
        return None
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return None
    try:
        return value.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None


def geometry_of(value: Tensor) -> Any:
    """Return what must not change about a tensor: shape, strides, offset and storage."""
    return value.shape, value.stride(), value.storage_offset(), value.untyped_storage()._cdata


def _extent(value: Tensor) -> tuple[int, int]:
    """Return the first and last position, exclusive, of a tensor in its storage, counted in real numbers."""
    if value.numel() == 0:
        return 0, 0
    parts = 2 if value.is_complex() else 1
    start = int(value.storage_offset())
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return parts * start, parts * (start + last + 1)


def _missing(wanted: tuple[int, int], filled: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the parts of an interval that no other interval covers."""
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
