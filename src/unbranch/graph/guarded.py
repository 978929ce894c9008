"""Running a module without a trace: nothing that existed before is written to, and no random number is drawn."""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.hooks import RemovableHandle

from .numberless import Stage
from .outside import restore_outside
from .shadow import computed_names, shadow_of
from .untouched import untouched

_PLUMBING = {*vars(nn.Module()), "forward", "unbranch_history"}


class StateWriteError(Exception):
    """A forward is about to write into a parameter, a buffer or another tensor that existed before it."""


class RandomDrawError(Exception):
    """A forward draws random numbers."""


class Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises before a protected storage is written to, and where the random state has moved, which it restores."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch._dynamo would be imported, which takes seconds

    def __init__(self, protected: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._protected = protected

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        mutable, seeded = _kind_of(func)
        if self._protected and mutable:
            for tensor in _written(func, args, kwargs):
                if _storage(tensor) in self._protected:
                    raise StateWriteError(str(func))
        if not seeded:
            return func(*args, **kwargs)
        before = torch.get_rng_state()
        result = func(*args, **kwargs)
        if not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
            raise RandomDrawError(str(func))
        return result


class _Lent(TorchFunctionMode):
    """Raises before the memory of a protected tensor is lent to others, whose writes PyTorch doesn't see."""

    def __init__(self, protected: set[int]) -> None:
        super().__init__()
        self._protected = protected

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _LENDING and args and _storage(args[0]) in self._protected:
            raise StateWriteError(str(func))
        return func(*args, **(kwargs or {}))


_LENDING = {"numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage"}


@functools.lru_cache(maxsize=4096)
def _kind_of(func: Any) -> tuple[bool, bool]:
    """Whether an operation writes to an argument, and whether it may draw random numbers."""
    return func._schema.is_mutable or func._schema.name in _TRAINED, torch.Tag.nondeterministic_seeded in func.tags


_TRAINED = {f"aten::{kind}" for kind in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")}
"""Norms that write to running statistics in training and don't say so: arguments 3 and 4, with the flag behind them."""


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


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse and other tensors without one storage
        return 0


@dataclass(eq=False)
class Observation:
    """What one run of a module gave.

    Args:
        outputs: its tensors, those of the arguments as they are afterwards included.
        structure: the outputs' structure, and what in it isn't a tensor.
        changes: attributes and tensors of modules, by path and name, that the run changed, with their new values.
    """

    outputs: list[Tensor]
    structure: Any
    changes: dict[tuple[str, str], Any] = field(default_factory=dict)


def observe(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], times: int = 1
) -> list[Observation]:
    """Run a copy of ``module`` in evaluation ``times`` times over: see ``Runner.observe``."""
    return Runner(module).observe(args, kwargs, mode, times)


class Watch(Protocol):
    """Runs parts of another network while a network runs."""

    beside: Runner | None

    def install(self, running: nn.Module, beside: nn.Module | None) -> list[RemovableHandle]:
        """Put hooks on a copy that is about to run, which may run parts of a copy of the network beside it."""


class _Copy:
    """A copy of a module, with what a run must not write to and what it may change."""

    def __init__(self, module: nn.Module, *, private: bool) -> None:
        self.module, self.private, self.state = module, private, _state(module)
        self.protected: set[int] = set()
        if not private:
            self.protected = {_storage(t) for m in module.modules() for t in _tensors_of(m)} - {0}

    def changes(self) -> dict[tuple[str, str], Any]:
        """What has changed since this was last asked."""
        before, self.state = self.state, _state(self.module)
        new = ((key, mark, value, before.get(key)) for key, (mark, value) in self.state.items())
        return {key: v for key, mark, v, old in new if old is None or (old[0] is not mark and old[0] != mark)}


@dataclass(eq=False)
class Runner:
    """A module, of which copies are run, one in each mode; a copy is run again as long as that leaves it as it was."""

    module: nn.Module
    _kept: dict[Any, _Copy] = field(default_factory=dict)
    _writes: bool = False

    def observe(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], times: int = 1,
        watch: Watch | None = None,
    ) -> list[Observation]:  # fmt: skip
        """Run a copy in evaluation ``times`` times over, under the context manager that ``mode`` makes.

        The copy shares the module's tensors. Where a forward writes to them all is run again on tensors of their own.
        A ``watch`` runs parts of another network along with it, of which the same holds.

        Raises:
            RandomDrawError: if it draws random numbers; the generators are as they were.
        """
        # A module that is used in inference mode has tensors without version counters.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(), untouched():
            warnings.simplefilter("ignore")
            try:
                if not self._writes:
                    try:
                        return self._run(args, kwargs, mode, times, watch)
                    except StateWriteError:
                        self._writes = True
                        restore_outside()
                return self._run(args, kwargs, mode, times, watch)
            finally:
                restore_outside()  # where tables may now be in another dtype

    def _run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], times: int, watch: Watch | None
    ) -> list[Observation]:
        own = self._taken(mode, private=self._writes)
        other = None if watch is None else watch.beside
        beside = None if other is None else other._taken(mode, private=self._writes)
        handles = [] if watch is None else watch.install(own.module, None if beside is None else beside.module)
        protected = own.protected if beside is None else own.protected | beside.protected
        try:
            seen = [_observed(own, args, kwargs, mode, protected) for _ in range(times)]
        finally:
            for handle in handles:
                handle.remove()
        if not any(one.changes for one in seen):
            self._kept[mode] = own
        if other is not None and beside is not None and not beside.changes():
            other._kept[mode] = beside
        return seen

    def _taken(self, mode: Any, *, private: bool) -> _Copy:
        kept = self._kept.pop(mode, None)
        if kept is not None and kept.private >= private:
            return kept
        return _Copy(private_copy(self.module) if private else sharing_copy(self.module), private=private)


def _observed(
    own: _Copy, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], protected: set[int]
) -> Observation:
    given, named = fresh((args, kwargs))
    with Guard(protected), _Lent(protected), mode():
        output = own.module(*given, **named)
    seen = observation(output, given, named)
    seen.changes.update(own.changes())
    return seen


def fresh(arguments: Any) -> Any:
    """Arguments with tensors of their own, since a forward may write to them."""
    return tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, arguments)


def observation(output: Any, args: Any, kwargs: Any) -> Observation:
    """An output, and the arguments as they are after the run."""
    return Observation(*_leaves((plain_output(output), plain_output(args), plain_output(kwargs))))


def sharing_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation that shares the module's memory."""
    return _with_own_objects(shadow_of(module))


def private_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation with tensors of its own."""
    return with_own_tensors(shadow_of(module))


def plain_output(output: Any) -> Any:
    """Model outputs of Hugging Face, data classes and the like as containers that PyTorch can flatten."""
    if isinstance(output, tuple | list):
        return [plain_output(v) for v in output]
    if isinstance(output, dict):
        return {str(k): plain_output(v) for k, v in output.items()}
    if hasattr(output, "to_tuple"):
        return plain_output(output.to_tuple())
    plain = Tensor | str | int | float | bool | type | enum.Enum | types.FunctionType | types.ModuleType | None
    if not isinstance(output, plain) and hasattr(output, "__dict__"):
        return {str(k): plain_output(v) for k, v in vars(output).items()}
    return output


def _leaves(value: Any) -> tuple[list[Tensor], Any]:
    leaves, spec = tree_flatten(value)
    others = tuple(type(v).__name__ if isinstance(v, Tensor) else _comparable(v) for v in leaves)
    return [v for v in leaves if isinstance(v, Tensor)], (str(spec), others)


def _comparable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None | torch.dtype) else type(value).__name__


def with_own_tensors(shadow: nn.Module) -> nn.Module:
    """Give a copy tensors of its own, shared among its modules as in the original."""
    return _with_tensors(shadow, lambda t: t.detach().clone())


def with_stand_ins(shadow: nn.Module, mode: Stage) -> nn.Module:
    """Give a copy tensors without numbers, so that nothing it does reaches the original's."""
    return _with_tensors(shadow, lambda t: mode.from_tensor(t.detach()))


def _with_own_objects(shadow: nn.Module) -> nn.Module:
    """Give a copy tensor objects of its own that share the original's memory: ``weight.data = …`` stays in it."""
    return _with_tensors(shadow, lambda t: t.detach())


def _with_tensors(shadow: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    memo: dict[int, Tensor] = {}

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
            return value
        if id(value) not in memo:
            fresh = make(value)
            memo[id(value)] = nn.Parameter(fresh, False) if isinstance(value, nn.Parameter) else fresh
        return memo[id(value)]

    for module in shadow.modules():
        for table in (module._parameters, module._buffers, vars(module)):
            for name, value in list(table.items()):
                table[name] = own(value)
    return shadow


@contextlib.contextmanager
def unwritten(module: nn.Module) -> Iterator[None]:
    """Keep a module's tensors as they are while its code runs on stand-ins for its input.

    A write raises ``StateWriteError`` before it happens; tensors get back their data, gradient, hooks and
    ``requires_grad`` if those were replaced.
    """
    tensors = {id(t): t for part in module.modules() for t in _tensors_of(part)}
    with torch.no_grad():
        kept = [(t, t.detach(), *_marks(t)) for t in tensors.values()]
    try:
        with Guard({_storage(t) for t in tensors.values()} - {0}):
            yield
    finally:
        for tensor, data, wanted, gradient, hooks in kept:
            if tensor.dtype != data.dtype or tensor.shape != data.shape or _storage(tensor) != _storage(data):
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
    """What autograd keeps with a tensor."""
    return tensor.requires_grad, tensor.grad if tensor.is_leaf else None, dict(tensor._backward_hooks or {})


_TABLES = {"_parameters", "_buffers", "_modules"}


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors among the attributes of a module, alone and in containers."""
    attributes = (value for name, value in vars(module).items() if name not in _PLUMBING)
    for value in (*module._parameters.values(), *module._buffers.values(), *attributes):
        if value is None or type(value) in _ATOMS:
            continue
        found = tree_flatten(value)[0] if isinstance(value, tuple | list | dict) and value else (value,)
        yield from (t for t in found if isinstance(t, Tensor) and not nn.parameter.is_lazy(t))


def _state(module: nn.Module) -> dict[tuple[str, str], tuple[Any, Any]]:
    """What a forward can change, by path and name: something to compare, and the value."""
    found: dict[tuple[str, str], tuple[Any, Any]] = {}
    for path, part in module.named_modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None and not nn.parameter.is_lazy(tensor):
                    found[path, name] = ((id(tensor), _version(tensor)), tensor)
        computed = computed_names(part) if part._forward_pre_hooks else ()
        for name, value in vars(part).items():
            if name not in _PLUMBING and name not in computed:
                known = isinstance(value, list | dict | set)
                found[path, name] = (_mark(value), copy.copy(value) if known else value)
    return found


def _mark(value: Any) -> Any:
    """Something that differs after the value was replaced or changed."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, Tensor):
        return id(value), _version(value)
    if isinstance(value, tuple | list):
        if kind is tuple and all(type(v) in _ATOMS for v in value):
            return value
        return kind.__name__, *map(_mark, value)
    if isinstance(value, dict):
        return tuple((str(k), _mark(v)) for k, v in value.items())
    if isinstance(value, set):
        return "set", *map(id, value)
    return id(value)


_ATOMS = {bool, int, float, str, type(None)}


def _version(tensor: Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # made in inference mode
        return 0
