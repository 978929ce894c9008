"""Inputs on which a network is read and compared: the example, and other sizes and batches that it accepts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from unbranch.convert.prove.differences import difference, failure, structural_difference
from unbranch.convert.prove.inputs import input_error
from unbranch.errors import DifferenceError, UnsupportedError
from unbranch.graph.eval_view import unwrap_model
from unbranch.graph.float64 import Float64
from unbranch.graph.guard import RandomDrawError
from unbranch.graph.operations import LENDS_MEMORY
from unbranch.graph.probe import Arguments, larger, runs, small
from unbranch.graph.running import Observation, Runner

EXACT = 1e-10  # of the largest value, in float64
_BATCH = 2  # images with which a network is read


@dataclass(eq=False)
class Trials:
    """A network, and the inputs on which it is read and compared.

    Args:
        network: the original.
        example: arguments of its forward.

    Raises:
        InputError: if the network doesn't run on the example.
        DifferenceError: if two runs on it differ, so nothing can be proved.
    """

    network: nn.Module
    example: tuple[Any, ...]
    given: list[Arguments] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._runner = Runner(self.network)
        first = Arguments(self.example)
        try:
            native = self._runner.observe(first.args, {}, contextlib.nullcontext, times=2)
        except RandomDrawError as error:
            raise DifferenceError("its output depends on random numbers, so it can't be compared") from error
        except Exception as error:
            raise input_error(self.network, self.example, error) from error
        if difference(native[1], native[0], 0.0, changes=False) is not None:
            raise DifferenceError("two runs of it on the same input differ, so it can't be compared")
        self._native = native[0]
        self.given = [first, *self._others(first)]

    def _others(self, first: Arguments) -> Iterator[Arguments]:
        """Yield a larger input, along as many axes as the network accepts, and a small one if it accepts that."""
        for zeros in larger(first):
            other = Arguments(tuple(map(_noise, zeros.args)))
            if _runs(self._runner, other):
                yield other
                break
        with contextlib.suppress(RandomDrawError):
            found = small(first, self._runner)
            if found is not None:
                yield found

    def read(self, mode: Any, given: Arguments) -> Observation:
        """Run the network under a ``ShadowMode``, on a few images of an input if it accepts these alone."""
        args = tree_map(lambda v: v[:_BATCH] if isinstance(v, Tensor) and v.dim() > 1 else v, given.args)
        if not _runs(self._runner, Arguments(args)):
            args = given.args
        return self._runner.observe(args, given.kwargs, lambda: under(mode), watch=mode)[0]

    def differs(self, exact: nn.Module, given: Iterable[Arguments] | None = None) -> str | None:
        """Return how a network whose parameters may be float64 differs from the original in float64, None if equal.

        Args:
            exact: the network.
            given: inputs to compare on, by default those of the trials.
        """
        runner = Runner(exact)
        for one in self.given if given is None else given:
            try:
                theirs = one.exact or self._runner.observe(one.args, one.kwargs, Float64)
                (ours,) = runner.observe(one.args, one.kwargs, Float64)
            except Exception as error:
                return failure(error)
            one.exact[:] = theirs if given is None else []
            if (reason := difference(ours, theirs[0], EXACT)) is not None:
                return reason
        return None

    def fails_rounded(self, result: nn.Module) -> str | None:
        """Return why a finished network can't be used in its own dtype, None if it runs without new infinities."""
        try:
            (ours,) = Runner(result).observe(self.example, {}, contextlib.nullcontext)
        except Exception as error:
            return failure(error)
        if (reason := structural_difference(ours, self._native)) is not None:
            return reason
        pairs = zip(ours.outputs, self._native.outputs, strict=True)
        overflows = any(bool((b.isfinite().all()) & ~a.isfinite().all()) for a, b in pairs)
        return "it overflows in the network's dtype" if overflows else None


def readable(model: nn.Module) -> nn.Module:
    """Return the network inside wrappers.

    Raises:
        UnsupportedError: if it has ScriptModules, or no values.
    """
    network = unwrap_model(model)
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedError(
                f"{path or type(network).__name__} is a ScriptModule: use the network before it is scripted"
            )
    if any(t.is_meta for t in (*network.parameters(), *network.buffers())):
        raise UnsupportedError(f"{type(network).__name__} is on the meta device, where its weights have no values")
    return network


def _runs(runner: Runner, given: Arguments) -> bool:
    try:
        return runs(runner, given)
    except RandomDrawError:
        return False


def _noise(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    generator = torch.Generator().manual_seed(value.numel())
    return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)


class _PythonReads(TorchFunctionMode):
    """Reports tensors that leave PyTorch, where nothing that is done with their numbers can be seen."""

    def __init__(self, mode: Any) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _LEAVES:
            self._mode.left(args[0])
        return func(*args, **(kwargs or {}))


_LEAVES = LENDS_MEMORY | {"tolist"}


@contextlib.contextmanager
def under(mode: Any) -> Iterator[None]:
    """Run under a ``CallMode``, which also learns of tensors that leave PyTorch."""
    with _PythonReads(mode), mode:
        yield
