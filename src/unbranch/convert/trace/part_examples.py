"""Find the shape-only arguments of every part of a network, for inputs of two sizes."""

from __future__ import annotations

import contextlib
import functools
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map

from unbranch.convert.trace.example_values import ExampleArguments
from unbranch.graph.copies import with_shapes_only
from unbranch.graph.eval_view import eval_view
from unbranch.graph.meta_mode import MetaMode, ShapeMode
from unbranch.graph.probe import Arguments

_UNLIKE = (1, 1, 2, 3, 5)
_ODD = (21, 26)  # added to the two sizes, so that a half or a quarter is odd in one of them
_APART = 32  # factor of sides, so that they still differ after every stride; not applied to the batch


@dataclass(eq=False)
class PartExamples:
    """The arguments that the parts of a network receive, computed on first use.

    Args:
        network: the original; a copy of it is run.
        pair: two inputs of different sizes.
    """

    network: nn.Module
    pair: tuple[Arguments, Arguments] | None
    _mode: ShapeMode = field(default_factory=MetaMode)
    _copy: nn.Module | None = None
    _unlike: bool = False
    _found: list[dict[str, Arguments]] | None = None
    _given: dict[str, ExampleArguments | None] = field(default_factory=dict)

    def of(self, path: str) -> ExampleArguments | None:
        """Return the arguments of the part at a path, if the network calls it."""
        if path not in self._given:
            self._given[path] = self._made(path)
        return self._given[path]

    def _made(self, path: str) -> ExampleArguments | None:
        if self.pair is None:
            return None
        if self._found is None:
            self._found = self._search()
        a, b = (found.get(path) for found in self._found)
        if self._copy is None or a is None or b is None:
            return None
        part = self._copy.get_submodule(path)
        try:
            first, second = (_by_name(part, given) for given in (a, b))
        except (TypeError, ValueError):  # a module without a signature
            return None
        return (
            ExampleArguments(self._mode, part, (first, second), self._unlike) if first.keys() == second.keys() else None
        )

    def _search(self) -> list[dict[str, Arguments]]:
        """Run the network at two sizes: with all sides different and odd, if it accepts them."""
        assert self.pair is not None
        best: list[dict[str, Arguments]] = [{}, {}]
        for make in (MetaMode, lambda: FakeTensorMode(allow_non_fake_inputs=True)):
            self._mode = make()
            try:
                self._copy = with_shapes_only(eval_view(self.network), self._mode)
            except Exception:  # tensors that have no shape-only form
                continue
            for self._unlike, unlike in ((True, True), (False, True), (False, False)):
                pair = _apart(*self.pair, unlike=unlike, odd=self._unlike)
                (first, failed), (second, too) = map(self._observed, pair)
                best = [first, second]
                if failed is None and too is None:
                    return [first, self._with_other_channels(*pair) or second]
                if any(error is not None and _needs_numbers(error) for error in (failed, too)):
                    return best  # as far as the network runs without data
        return best

    def _with_other_channels(self, first: Arguments, second: Arguments) -> dict[str, Arguments] | None:
        """Return arguments for twice as many channels, so that their number isn't fixed; None if the network fails."""
        tensors = [v for v in (*first.args, *second.args) if isinstance(v, Tensor) and v.dim() > 1]
        if len(tensors) < len(first.args) + len(second.args):
            return None
        for axis in (1, -1):
            if all(a.shape[axis] == b.shape[axis] for a, b in zip(first.args, second.args, strict=True)):
                found, failed = self._observed(Arguments(tuple(_doubled(v, axis) for v in second.args)))
                if failed is None:
                    return found
        return None

    def _observed(self, given: Arguments) -> tuple[dict[str, Arguments], Exception | None]:
        """Return the arguments of all parts for an input, and the exception that stopped the run, if any."""
        assert self._copy is not None
        own = eval_view(self._copy)
        found: dict[str, Arguments] = {}

        def watch(path: str) -> Any:
            def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
                if path not in found:
                    found[path] = Arguments(args, kwargs)

            return hook

        for path, module in own.named_modules():
            with contextlib.suppress(RuntimeError):  # ScriptModules don't support them
                module.register_forward_pre_hook(watch(path), with_kwargs=True)
        try:
            with torch.inference_mode(False), torch.no_grad(), self._mode:
                own(*tree_map(self._shape_only, given.args))
        except Exception as error:
            return found, error
        return found, None

    @functools.cached_property
    def _device(self) -> torch.device:
        return next((t.device for t in self.network.parameters()), torch.device("cpu"))

    def _shape_only(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        device = self._device if value.is_meta else value.device
        return torch.empty(value.shape, dtype=value.dtype, device=device)


def _by_name(module: nn.Module, given: Arguments) -> dict[str, Any]:
    """Return the arguments of a forward by name; of ``*args`` the first one."""
    signature = inspect.signature(module.forward)
    found = dict(signature.bind(*given.args, **given.kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL and found.get(name):
            found[name] = found[name][0]
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            found.pop(name, None)
    return found


def _needs_numbers(error: Exception) -> bool:
    """Whether a forward that failed on shape-only tensors needs the data in them."""
    kinds = (DataDependentOutputException, DynamicOutputShapeException)
    return isinstance(error, kinds) or any(words in str(error) for words in ("meta tensors", "Meta tensors", "'Meta'"))


def _doubled(value: Tensor, axis: int) -> Tensor:
    shape = list(value.shape)
    shape[axis] *= 2
    return torch.empty(shape, dtype=value.dtype, device="meta")


def _apart(first: Arguments, second: Arguments, *, unlike: bool, odd: bool) -> tuple[Arguments, Arguments]:
    """Return two inputs with the sizes that differ multiplied; with ``unlike`` by a different factor for each axis.

    ``odd`` sizes are multiples of nothing, so that a size that is halved and doubled again is another size.
    """

    def larger(value: Any, other: Any, more: int) -> Any:
        if not isinstance(value, Tensor) or not isinstance(other, Tensor) or value.dim() != other.dim():
            return value
        by_axis = [_UNLIKE[axis % len(_UNLIKE)] if unlike else 1 for axis in range(value.dim())]
        factors = [factor * (_APART if axis else 1) for axis, factor in enumerate(by_axis)]
        sizes = zip(value.shape, other.shape, factors, strict=True)
        shape = [n if n == m else n * factor + more * odd for n, m, factor in sizes]
        return torch.empty(shape, dtype=value.dtype, device="meta")

    def paired(a: Arguments, b: Arguments, more: int) -> Arguments:
        return Arguments(tuple(larger(v, w, more) for v, w in zip(a.args, b.args, strict=False)))

    return paired(first, second, _ODD[0]), paired(second, first, _ODD[1])
