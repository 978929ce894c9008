"""What a case of a law is, and the checks that every law must pass; ``mutants.py`` gives them broken laws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.algebra.strategies import numbers
from unbranch.algebra import ConvMap, GridMap
from unbranch.errors import InexactError

TOLERANCE = 1e-11  # relative to the largest number of the truth

Law = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """Arguments of a law, and what the result must compute according to PyTorch.

    Args:
        args, kwargs: what the law is called with.
        truth: the true function of an input ``(N, channels, *grid)``.
        channels, grids: inputs to compare on; several grids, so that the output size is proved too.
        apply: how the law's result acts on an input.
        also: what else must be so of the result, such as its groups.
    """

    args: tuple[Any, ...]
    truth: Callable[[Tensor], Tensor]
    channels: int
    grids: tuple[tuple[int, ...], ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    apply: Callable[[Any, Tensor], Tensor] = lambda result, x: result(x)
    also: Callable[[Any], None] = lambda result: None

    def inputs(self) -> Iterator[Tensor]:
        for j, grid in enumerate(self.grids):
            yield numbers(100 + j, 2, self.channels, *grid)

    def __repr__(self) -> str:
        return f"Case({', '.join(map(geometry, self.args))}, {self.kwargs}, grids {self.grids})"


def two(grid: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """A grid and one that is a point larger in each dimension: strides treat them differently."""
    return (grid, tuple(n + 1 for n in grid)) if grid else (grid,)


def on_map(m: ConvMap, grid: tuple[int, ...], truth: Any, *args: Any, **more: Any) -> Case:
    return Case((m, *args), truth, m.in_channels, two(grid), **more)


@dataclass(frozen=True)
class Property:
    """A law, and the cases it must be right about; where ``refusable`` it may raise InexactError instead."""

    law: Law
    cases: st.SearchStrategy[Case]
    refusable: bool = False

    def prove(self, law: Law | None = None, check: Callable[..., None] | None = None, **options: Any) -> None:
        """Run a check (default: the result is the true function) on many cases."""
        proved, verify = law or self.law, check or check_truth

        @settings(**options)
        @given(self.cases)
        def run(case: Case) -> None:
            before = copied(case.args)
            try:
                verify(proved, case)
            except InexactError:
                if not self.refusable:
                    raise
            assert equal(before, case.args), "the law changed its arguments"

        run()


def check_truth(law: Law, case: Case) -> None:
    """The law's result equals the true function, in value and size, on every grid."""
    result = law(*case.args, **case.kwargs)
    for x in case.inputs():
        truth = case.truth(x)
        assert_close(case.apply(result, x), truth)
        if isinstance(result, ConvMap):
            assert result.output_size(x.shape[2:]) == tuple(truth.shape[2:])
    case.also(result)


def check_meta(law: Law, case: Case) -> None:
    """With kernels on the meta device, or biases too, the law gives the geometry that it gives with real ones."""
    real = law(*case.args, **case.kwargs)
    for without in (without_kernel, without_values):
        meta = law(*map(without, case.args), **case.kwargs)
        assert geometry(meta) == geometry(real)
        for m in meta if isinstance(meta, list) else [meta]:
            assert (m.weight if isinstance(m, ConvMap) else m.matrix).is_meta


def assert_close(got: Tensor, truth: Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.dtype == truth.dtype
    assert got.shape == truth.shape, f"shape {tuple(got.shape)}, truly {tuple(truth.shape)}"
    error = (got - truth).abs().max()
    assert error <= tolerance * truth.abs().max().clamp(min=1), f"differs by {error:.3g}"


def geometry(value: Any) -> str:
    """All of a value but its numbers."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if isinstance(value, ConvMap | GridMap):
        return f"{type(value).__name__}({', '.join(f'{k}={geometry(v)}' for k, v in vars(value).items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(geometry, value))}]"
    return repr(value)


def without_kernel(value: Any) -> Any:
    return value.meta() if isinstance(value, ConvMap | GridMap) else value


def without_values(value: Any) -> Any:
    """A map as it comes out of a composition of maps on the meta device: its bias is there too."""
    if isinstance(value, ConvMap) and value.bias is not None:
        return replace(value.meta(), bias=value.bias.to("meta"))
    return without_kernel(value)


def copied(value: Any) -> Any:
    """A copy of every number in the value."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, ConvMap | GridMap):
        return {name: copied(part) for name, part in vars(value).items()}
    if isinstance(value, tuple | list):
        return [copied(part) for part in value]
    return value


def equal(copy: Any, value: Any) -> bool:
    if isinstance(value, Tensor):
        return torch.equal(copy, value)
    if isinstance(value, ConvMap | GridMap):
        return all(equal(copy[name], part) for name, part in vars(value).items())
    if isinstance(value, tuple | list):
        return all(map(equal, copy, value))
    return bool(copy == value)
