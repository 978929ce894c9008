"""Find inputs on which a module runs, from the channels and ranks of its first layers."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.graph.float64 import Float64
from unbranch.graph.guard import RandomDrawError
from unbranch.graph.meta_mode import MetaMode
from unbranch.graph.running import Observation, Runner

Expected = Callable[[nn.Module], tuple[int, int, int] | None]  # channels, grid dimensions, channel axis (1 or -1)

_SIDES = (
    (20, 26), (40, 52), (64, 80), (32, 32), (96, 128), (224, 224), (256, 256), (28, 28), (8, 8), (384, 384), (120, 120),
)  # fmt: skip
_VOLUMES = ((10, 20, 26), (8, 16, 24), (16, 32, 16), (32, 64, 32), (16, 112, 112), (64, 64, 64), (96, 96, 96))
_SMALL = ((3, 5, 7), (7, 11, 9), (13, 15, 17))
_TRIED_LAYERS = 3


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of one call of a forward.

    Args:
        native: observations of runs on them in the module's own dtype, if any.
        exact: the same in float64.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    native: list[Observation] = field(default_factory=list)
    exact: list[Observation] = field(default_factory=list)


def probe(module: nn.Module, expected: Expected, runner: Runner | None = None) -> list[Arguments]:
    """Find one or two inputs of different size and batch on which a module's forward runs.

    Args:
        module: the module.
        expected: returns the input that a layer expects.
        runner: a runner of the module, if there is one already.

    Returns:
        Up to two inputs; an empty list if none was found.

    Raises:
        RandomDrawError: if the forward draws random numbers.
    """
    count = _required(module)
    if not count:
        return []
    dtype, device = _like(module)
    runner = runner or Runner(module)
    for channels, ndim, axis in _layers_first(module, expected):
        last = axis == -1
        sizes: tuple[tuple[int, ...], ...] = _VOLUMES if ndim == 3 else _SIDES
        for sides, axes in itertools.product(sizes if ndim and not last else sizes[:1], (1, 0, 2) if last else (ndim,)):
            shape = _shape(2, channels, axes, last, sides)
            first = _noise(shape, count, dtype, device)
            if not runs(runner, first):
                continue
            more = (_noise(_shape(3, channels, axes, last, o), count, dtype, device) for o in _others(sides))
            second = next((m for m in more if runs(runner, m, exactly=True)), None)
            return [first] if second is None else [first, second]
    return []


def _required(module: nn.Module) -> int:
    """Return how many arguments a forward needs; 0 if keyword-only arguments are among them."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return 0
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if any(p.kind is p.KEYWORD_ONLY for p in needed):
        return 0
    positional = [p for p in needed if p.kind is not p.VAR_POSITIONAL]
    return len(positional) or min(1, len(parameters))


def _layers_first(module: nn.Module, expected: Expected) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    for part in module.modules():
        one = expected(part)
        if one is not None and one not in found:
            found.append(one)
        if len(found) == _TRIED_LAYERS:
            break
    return found


def _others(sides: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield other sizes: odd steps larger, twice as large, and for volumes twice as large along two axes."""
    yield *(n + 3 for n in sides[:-2]), sides[-2] + 7, sides[-1] + 4
    if len(sides) > 2:
        yield *sides[:-2], sides[-2] * 2, sides[-1] * 2
    yield tuple(2 * n for n in sides)
    yield sides


def _shape(batch: int, channels: int, ndim: int, last: bool, sides: tuple[int, ...]) -> tuple[int, ...]:
    grid = (sides[0] // 2, *sides)[-ndim:] if ndim else ()
    return (batch, *(n // 2 for n in grid), channels) if last else (batch, channels, *grid)


def _noise(shape: tuple[int, ...], count: int, dtype: torch.dtype, device: torch.device) -> Arguments:
    generator = torch.Generator().manual_seed(sum(shape))
    values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count))
    return Arguments(tuple(v.to(device, dtype) for v in values))


def larger(given: Arguments) -> Iterator[Arguments]:
    """Yield inputs with one more image and twice as large along all axes, all but the channels, one, or none.

    Channels are on axis 1 or on the last axis.
    """
    rank = max((v.dim() for v in given.args if isinstance(v, Tensor)), default=0)
    alone = [slice(axis, axis + 1) for axis in range(rank - 1, 0, -1) if rank > 3]
    for axes in (slice(1, None), slice(2, None), slice(1, -1), *alone, slice(0, 0)):
        yield Arguments(tuple(_larger(v, axes) for v in given.args))


def _larger(value: Any, axes: slice) -> Any:
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    shape = list(value.shape)
    shape[axes] = [n * 2 if n > 1 else 1 for n in shape[axes]]
    return value.new_zeros((shape[0] + 1, *shape[1:]))


def small(given: Arguments, runner: Runner) -> Arguments | None:
    """Return an image that a forward accepts, odd and smaller than a given one: small sizes may take another path."""
    tensors = [v for v in given.args if isinstance(v, Tensor)]
    if not tensors or any(v.dim() < 3 or v.shape != tensors[0].shape for v in tensors):
        return None
    for sides in _SMALL:
        shape = (1, tensors[0].shape[1], *sides[: tensors[0].dim() - 2])
        if all(a < b for a, b in zip(shape[2:], tensors[0].shape[2:], strict=True)):
            generator = torch.Generator().manual_seed(sum(shape))
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            one = Arguments(
                tuple(noise.to(v.device, v.dtype) if isinstance(v, Tensor) else v for v in given.args), given.kwargs
            )
            if runs(runner, one, exactly=True):
                return one
    return None


def runs(runner: Runner, given: Arguments, *, exactly: bool = False) -> bool:
    """Whether a module's forward runs on an input.

    With ``exactly`` it is tried in float64 first, and the observation is stored with the input.
    """
    meta = any(isinstance(v, Tensor) and v.is_meta for v in given.args)
    modes: list[Callable[[], Any]] = [Float64] if exactly and not meta else []
    for mode in (*modes, MetaMode if meta else contextlib.nullcontext):
        try:
            seen = runner.observe(given.args, given.kwargs, mode)
        except RandomDrawError:
            raise
        except Exception:
            continue
        if mode is Float64:
            given.exact.extend(seen)
        return True
    return False


def _like(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    tensors = (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
    found = next(tensors, torch.empty(0))
    return found.dtype, found.device
