"""Run a network with a shadow beside its memory: for every number, what is known about it.

A shadow belongs to a storage and has one value for each of its elements, so views, slices, reshapes and writes into
views need no rules: the shadow of a tensor is the same view of the shadow of its memory. The operations seen are those
that PyTorch's dispatcher runs, so it doesn't matter whether a layer, a function or an operator called them.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from unbranch.graph.guard import storage_of


@dataclass(frozen=True, eq=False)
class Stored:
    """A parameter or buffer of the running network.

    Args:
        name: its path; of several names the first.
        tensor: the tensor as the network holds it.
    """

    name: str
    tensor: Tensor


@dataclass(frozen=True, eq=False)
class _Shadow:
    storage: StorageWeakRef
    itemsize: int
    planes: tuple[Tensor, ...]

    @property
    def expired(self) -> bool:
        return bool(self.storage.expired())  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class Call:
    """A call of an operation.

    Args:
        func: the operation.
        args: positional arguments, filled with those of ``kwargs`` that the schema has in these places.
        kwargs: the other arguments.
        result: what it returned.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    def arg(self, place: int, default: Any = None) -> Any:
        """Return an argument by its place."""
        return self.args[place] if place < len(self.args) else default


class ShadowMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operations and, for each, a rule that computes the shadow of its result.

    Shadows are float64 arrays in ``planes`` planes. Subclasses have the rules and the shadow of memory that no rule
    wrote. Also observes a ``Runner``: it learns the names of parameters and buffers when the copy is about to run.
    """

    planes = 1
    beside = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping would import torch._dynamo, which takes seconds

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shadows: dict[int, _Shadow] = {}
        self._stored: dict[int, Stored | None] = {}

    def install(self, running: nn.Module, beside: nn.Module | None) -> list[Any]:  # noqa: ARG002
        """Learn the parameters and buffers of the copy that is about to run."""
        named = [*running.named_parameters(remove_duplicate=False), *running.named_buffers(remove_duplicate=False)]
        for name, tensor in named:
            key = storage_of(tensor)
            known = self._stored.setdefault(key, Stored(name, tensor))
            if known is None or not _same_view(known.tensor, tensor):
                self._stored[key] = None  # several tensors in one memory
        return []

    # Memory

    def stored(self, tensor: Any) -> Stored | None:
        """Return the parameter or buffer that a tensor is as a whole, or None."""
        if not isinstance(tensor, Tensor):
            return None
        found = self._stored.get(storage_of(tensor))
        return found if found is not None and _same_view(found.tensor, tensor) else None

    def owner_of(self, tensor: Tensor) -> Stored | None:
        """Return the parameter or buffer in whose memory a tensor lies; None as well if several share it."""
        return self._stored.get(storage_of(tensor))

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
        known = set() if _is_mutable(func) else {storage_of(t) for t in tensors_in((args, kwargs))}
        result = func(*args, **kwargs)
        results = [t for t in tensors_in(result) if storage_of(t) not in known]
        returns = list(tensors_in(result))
        if returns and not results:  # views
            return result
        with torch._C.DisableTorchFunction():
            self._follow(_filled(func, args, kwargs, result), returns, known)
        return result

    def _follow(self, call: Call, returns: list[Tensor], known: set[int]) -> None:
        name = base_name(call.func)
        rule = None if call.func._overloadname == "out" else self.rule(name)
        shadows = NotImplemented if rule is None else rule(call)
        if shadows is NotImplemented:
            self.without_rule(call)
            shadows = [None] * len(returns)
            if _is_mutable(call.func):
                returns = [*returns, *tensors_in((call.args, call.kwargs))]
                shadows = [None] * len(returns)
        for tensor, planes in zip(returns, [*shadows, *[None] * (len(returns) - len(shadows))], strict=True):
            if storage_of(tensor) not in known:
                self.write(tensor, self.unknown(tensor) if planes is None else planes)

    def moved(self, call: Call, change: Callable[[Any], Any] = lambda value: value) -> list[tuple[Tensor, ...]]:
        """Return the shadows of an operation that only moves numbers, by running it on the shadows of its input.

        Args:
            call: the operation; its integer tensors are indices, unless all of its tensors are integers.
            change: replaces other arguments, such as the value that pads.
        """
        floating = [t for t in tensors_in((call.args, call.kwargs)) if t.is_floating_point()]

        def given(plane: int, value: Any) -> Any:
            if isinstance(value, Tensor):
                return self.read(value)[plane] if value.is_floating_point() or not floating else value
            return change(value)

        runs = [
            list(tensors_in(call.func(*tree_map(functools.partial(given, p), call.args),
                                      **tree_map(functools.partial(given, p), call.kwargs))))
            for p in range(self.planes)
        ]  # fmt: skip
        return list(zip(*runs, strict=True))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested arguments or results."""
    yield from (v for v in tree_flatten(value)[0] if isinstance(v, Tensor))


@functools.lru_cache(maxsize=4096)
def base_name(func: Any) -> str:
    """Return the name of an operation without namespace, overload and the underscore of its in-place form."""
    name: str = func._schema.name.partition("::")[2]
    return name.rstrip("_") if name.endswith("_") and not name.endswith("__") else name


@functools.lru_cache(maxsize=4096)
def _is_mutable(func: Any) -> bool:
    return bool(func._schema.is_mutable)


def _filled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Call:
    """Move keyword arguments to their places as far as there are no gaps."""
    places, rest = list(args), dict(kwargs)
    for argument in func._schema.arguments[len(args) :]:
        if argument.name in rest and not argument.kwarg_only:
            places.append(rest.pop(argument.name))
        elif argument.kwarg_only or not argument.has_default_value():
            break
        else:
            places.append(argument.default_value)
    return Call(func, tuple(places), rest, result)


def _same_view(a: Tensor, b: Tensor) -> bool:
    same = a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    return same and int(a.storage_offset()) == int(b.storage_offset())


def _weak(storage: Any) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]
