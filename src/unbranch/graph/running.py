"""Run a module without writing to existing tensors or drawing random numbers, and observe what it does."""

from __future__ import annotations

import contextlib
import enum
import re
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.hooks import RemovableHandle

from unbranch.graph.copies import private_copy, sharing_copy
from unbranch.graph.global_state import restoring_global_state
from unbranch.graph.guard import Guard, Lent, StateWriteError, storage_of
from unbranch.graph.isolated import Isolated
from unbranch.graph.outside import restore_outside
from unbranch.graph.state import state_of, tensors_of


@dataclass(eq=False)
class Observation:
    """What one run of a module returned and changed.

    Args:
        outputs: its tensors, including those of the arguments after the run.
        structure: the structure of the outputs, and all leaves that aren't tensors.
        changes: new values of attributes and tensors of modules that the run changed, by path and name.
    """

    outputs: list[Tensor]
    structure: Any
    changes: dict[tuple[str, str], Any] = field(default_factory=dict)


def observe(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], times: int = 1
) -> list[Observation]:
    """Run a copy of ``module`` in evaluation mode ``times`` times, see ``Runner.observe``."""
    return Runner(module).observe(args, kwargs, mode, times)


class Watch(Protocol):
    """An observer that may run parts of another network while a network runs."""

    beside: Runner | None

    def install(self, running: nn.Module, beside: nn.Module | None) -> list[RemovableHandle]:
        """Register hooks on a copy that is about to run; they may run parts of ``beside``, a copy of the other one."""


class _Copy:
    """A copy of a module, with the storages that a run must not write to, and the state that it may change."""

    def __init__(self, module: nn.Module, *, private: bool) -> None:
        self.module, self.private, self.state = module, private, state_of(module)
        self.protected: set[int] = set()
        if not private:
            self.protected = {storage_of(t) for m in module.modules() for t in tensors_of(m)} - {0}

    def changes(self) -> dict[tuple[str, str], Any]:
        """Return what has changed since the last call."""
        before, self.state = self.state, state_of(self.module)
        new = ((key, mark, value, before.get(key)) for key, (mark, value) in self.state.items())
        return {key: v for key, mark, v, old in new if old is None or (old[0] is not mark and old[0] != mark)}


@dataclass(eq=False)
class Runner:
    """Runs copies of a module, one for each mode; a copy is reused as long as runs don't change it."""

    module: nn.Module
    _kept: dict[Any, _Copy] = field(default_factory=dict)
    _writes: bool = False

    def observe(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], times: int = 1,
        watch: Watch | None = None, most: int | None = None,
    ) -> list[Observation]:  # fmt: skip
        """Run a copy in evaluation mode.

        The copy shares the module's tensors. If a forward writes to them, everything is run again on cloned tensors.

        Args:
            args, kwargs: the arguments; tensors are cloned.
            mode: makes the context manager to run in.
            times: how many runs.
            watch: runs parts of another network at the same time.
            most: the largest number of operations that a run may launch.

        Raises:
            RandomDrawError: if it draws random numbers; the generators are restored.
        """
        # A module used in inference mode has tensors without version counters.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(), restoring_global_state():
            warnings.simplefilter("ignore")
            try:
                if not self._writes:
                    try:
                        return self._run(args, kwargs, mode, times, watch, most)
                    except StateWriteError:
                        self._writes = True
                        restore_outside()
                return self._run(args, kwargs, mode, times, watch, most)
            finally:
                restore_outside()  # whose tables may now have another dtype

    def _run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], times: int, watch: Watch | None,
        most: int | None,
    ) -> list[Observation]:  # fmt: skip
        own = self._taken(mode, private=self._writes)
        other = None if watch is None else watch.beside
        beside = None if other is None else other._taken(mode, private=self._writes)
        handles = [] if watch is None else watch.install(own.module, None if beside is None else beside.module)
        protected = own.protected if beside is None else own.protected | beside.protected
        try:
            seen = [_observed(own, args, kwargs, mode, protected, most) for _ in range(times)]
        finally:
            for handle in handles:
                handle.remove()
        # Writes through ``.data`` aren't counted, so a copy that may be written to isn't reused.
        if not own.private and not any(one.changes for one in seen):
            self._kept[mode] = own
        if other is not None and beside is not None and not beside.private and not beside.changes():
            other._kept[mode] = beside
        return seen

    def _taken(self, mode: Any, *, private: bool) -> _Copy:
        kept = self._kept.pop(mode, None)
        if kept is not None and not private:
            return kept
        return _Copy(private_copy(self.module) if private else sharing_copy(self.module), private=private)


def _observed(
    own: _Copy, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Callable[[], Any], protected: set[int],
    most: int | None,
) -> Observation:  # fmt: skip
    given, named = cloned((args, kwargs))
    inner = mode()
    # Isolated already gives access to private copies only.
    lent = contextlib.nullcontext() if isinstance(inner, Isolated) else Lent(protected)
    with Guard(protected, most), lent, inner:
        output = own.module(*given, **named)
    seen = observation(output, given, named)
    seen.changes.update(own.changes())
    return seen


def cloned(arguments: Any) -> Any:
    """Clone the tensors of arguments, since a forward may write to them."""
    return tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, arguments)


def observation(output: Any, args: Any, kwargs: Any) -> Observation:
    """Return an observation of an output, and of the arguments after the run."""
    return Observation(*_leaves((plain_output(output), plain_output(args), plain_output(kwargs))))


def plain_output(output: Any) -> Any:
    """Convert model outputs of Hugging Face, data classes and the like to containers that PyTorch can flatten."""
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


_NUMBER = re.compile(r"[-+]?\d+\.\d+(?:e[-+]?\d+)?")


def _leaves(value: Any) -> tuple[list[Tensor], Any]:
    """Return tensors, numbers and numbers in strings as tensors, and the structure without them."""
    leaves, spec = tree_flatten(value)
    found: list[Tensor] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, float):
            found.append(torch.tensor(leaf, dtype=torch.float64))
        elif isinstance(leaf, str):
            found += [torch.tensor(float(n), dtype=torch.float64) for n in _NUMBER.findall(leaf)]
    return found, (str(spec), tuple(map(_comparable, leaves)))


def _comparable(value: Any) -> Any:
    if isinstance(value, str):
        return _NUMBER.sub("#", value)
    return value if isinstance(value, int | None | torch.dtype) else type(value).__name__
