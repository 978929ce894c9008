"""Running a module without a trace: nothing that existed before is written to, and no random number is drawn."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from .numberless import Stage
from .outside import restore_outside
from .shadow import computed_names, shadow_of
from .untouched import untouched

_PLUMBING = {
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training", "forward", "unbranch_history",
}  # fmt: skip


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


@functools.lru_cache(maxsize=4096)
def _kind_of(func: Any) -> tuple[bool, bool]:
    """Whether an operation writes to an argument, and whether it may draw random numbers."""
    return func._schema.is_mutable, torch.Tag.nondeterministic_seeded in func.tags


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
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
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], times: int = 1,
    prepare: Prepare | None = None,
) -> list[Observation]:  # fmt: skip
    """Run a copy of ``module`` in evaluation ``times`` times over: see ``Runner.observe``."""
    return Runner(module).observe(args, kwargs, mode, times, prepare)


Prepare = Callable[[nn.Module, bool], nn.Module | None]
"""Puts hooks on a copy that is about to run; the flag says whether it has tensors of its own."""


@dataclass(eq=False)
class Runner:
    """A module, of which copies are run, one in each mode; a copy is run again as long as that leaves it as it was."""

    module: nn.Module
    _kept: dict[Any, nn.Module] = field(default_factory=dict)
    _writes: bool = False

    def observe(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], times: int = 1,
        prepare: Prepare | None = None,
    ) -> list[Observation]:  # fmt: skip
        """Run a copy in evaluation ``times`` times over, under the context manager that ``mode`` makes.

        The copy, on which ``prepare`` may put hooks, shares the module's tensors, and so does a network that this
        returns, whose parts the hooks run. Where a forward writes to them all is run again on tensors of their own.

        Raises:
            RandomDrawError: if it draws random numbers; the generators are as they were.
        """
        # A module that is used in inference mode has tensors without version counters.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(), untouched():
            warnings.simplefilter("ignore")
            try:
                if not self._writes:
                    try:
                        return self._run(args, kwargs, mode, times, prepare)
                    except StateWriteError:
                        self._writes = True
                        restore_outside()
                return self._run(args, kwargs, mode, times, prepare)
            finally:
                restore_outside()  # where tables may now be in another dtype

    def _run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], times: int,
        prepare: Prepare | None,
    ) -> list[Observation]:  # fmt: skip
        own = self._kept.pop(mode, None)
        if own is None or self._writes or prepare is not None:
            own = private_copy(self.module) if self._writes else sharing_copy(self.module)
        beside = None if prepare is None else prepare(own, self._writes)
        run = [m for network in (own, beside) if network is not None for m in network.modules()]
        protected = set() if self._writes else {_storage(t) for m in run for t in _tensors_of(m)} - {0}
        seen = [_observed(own, args, kwargs, mode, protected) for _ in range(times)]
        if prepare is None and not any(one.changes for one in seen):
            self._kept[mode] = own
        return seen


def _observed(
    own: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], protected: set[int]
) -> Observation:
    given, named = fresh((args, kwargs))
    before = _state(own)
    with Guard(protected), mode():
        output = own(*given, **named)
    changed = {key: value for key, value in _state(own).items() if key not in before or before[key][0] != value[0]}
    seen = observation(output, given, named)
    seen.changes.update({key: value for key, (_, value) in changed.items()})
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
    if not isinstance(output, Tensor | str | int | float | bool | None) and hasattr(output, "__dict__"):
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
    attributes = (value for name, value in vars(module).items() if name not in _TABLES)
    for value in (*module._parameters.values(), *module._buffers.values(), *attributes):
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
        computed = computed_names(part)
        for name, value in vars(part).items():
            if name not in computed and name not in _PLUMBING and not name.endswith("_hooks") and "hooks_" not in name:
                found[path, name] = (_mark(value), copy.copy(value) if isinstance(value, list | dict | set) else value)
    return found


def _mark(value: Any) -> Any:
    """Something that differs after the value was replaced or changed."""
    if isinstance(value, Tensor):
        return id(value), _version(value)
    if isinstance(value, tuple | list):
        return type(value).__name__, *map(_mark, value)
    if isinstance(value, dict):
        return tuple((str(k), _mark(v)) for k, v in value.items())
    if isinstance(value, bool | int | float | str | None):
        return value
    return id(value)


def _version(tensor: Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # made in inference mode
        return 0
