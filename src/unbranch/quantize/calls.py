"""Run a network and see every operation that PyTorch's dispatcher runs, with the names of its parameters."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from unbranch.graph.guard import storage_of
from unbranch.graph.running import Runner


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

    @property
    def is_view(self) -> bool:
        """Whether all that it returned are views of what it was given."""
        known = {storage_of(t) for t in tensors_in((self.args, self.kwargs))}
        returned = list(tensors_in(self.result))
        return bool(returned) and not is_mutable(self.func) and all(storage_of(t) in known for t in returned)

    @property
    def result_is_floating(self) -> bool:
        """Whether the first tensor that it returned has floating-point numbers."""
        return any(t.is_floating_point() for t in list(tensors_in(self.result))[:1])


class CallMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees operations, and knows the parameters and buffers of the running network.

    Also observes a ``Runner``: it learns the names when the copy is about to run.
    """

    beside: Runner | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping would import torch._dynamo, which takes seconds

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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

    def stored(self, tensor: Any) -> Stored | None:
        """Return the parameter or buffer that a tensor is as a whole, or None."""
        if not isinstance(tensor, Tensor):
            return None
        found = self._stored.get(storage_of(tensor))
        return found if found is not None and _same_view(found.tensor, tensor) else None

    def owner_of(self, tensor: Tensor) -> Stored | None:
        """Return the parameter or buffer in whose memory a tensor lies; None as well if several share it."""
        return self._stored.get(storage_of(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            self.see(filled(func, args, kwargs, result))
        return result

    def see(self, call: Call) -> None:
        """Observe an operation that has run."""

    def left(self, value: Any) -> None:
        """Observe tensors that code outside of PyTorch's operations sees."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested arguments or results."""
    yield from (v for v in tree_flatten(value)[0] if isinstance(v, Tensor))


@functools.lru_cache(maxsize=4096)
def base_name(func: Any) -> str:
    """Return the name of an operation without namespace, overload and the underscore of its in-place form."""
    name: str = func._schema.name.partition("::")[2]
    return name.rstrip("_") if name.endswith("_") and not name.endswith("__") else name


@functools.lru_cache(maxsize=4096)
def is_mutable(func: Any) -> bool:
    """Whether an operation writes to one of its arguments."""
    return bool(func._schema.is_mutable)


def filled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Call:
    """Return a call with keyword arguments and defaults in their places, as far as there are no gaps."""
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
