"""What `collapse` promises, checked on every row of the corpus, with and without an example input."""

from __future__ import annotations

import copy
import dataclasses
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import unbranch as ub
from tests.convert.corpus import ROWS, Call, Row
from unbranch.convert.prove import forwards
from unbranch.convert.statistics import randomise_statistics
from unbranch.convert.trace import tracer

BY_NAME = {row.name: row for row in ROWS}
ROUNDING = 1e-5  # of weights that were merged and stored in float32, relative to the largest output


@dataclass(frozen=True)
class Outcome:
    """One conversion: the source before, after, and after its result has run; the result, or what was raised."""

    before: dict[str, Any]
    after: dict[str, Any]
    in_the_end: dict[str, Any]
    plain: nn.Module | None
    error: Exception | None
    tables: list[str]


def cases(rows: list[Row]) -> Any:
    """A test's rows, without and with example; one process converts each once.

    Without --all, every second row of the corpus has an example.
    """
    number = {row.name: j for j, row in enumerate(ROWS)}
    marked = [
        pytest.param(
            row.name, example, id=f"{row.name}{', example' * example}",
            marks=pytest.mark.xdist_group(f"{row.name}, {example}"),
        )
        for row in rows
        for example in ((False, True) if number[row.name] % 2 == 0 else (True, False))
    ]  # fmt: skip

    def marks(test: Any) -> Any:
        return pytest.mark.sweep(2)(pytest.mark.parametrize(("name", "example"), marked)(test))

    return marks


@pytest.fixture(autouse=True, scope="module")
def short_patience() -> Iterator[None]:
    """Give up sooner on a forward that doesn't end: no other row has nearly as many operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forwards, "_OPERATIONS", 5_000)
        patch.setattr(tracer, "MAX_OPERATIONS", 20_000)
        yield


@cases(ROWS)
def test_source_untouched(name: str, example: bool) -> None:
    outcome = converted(name, example)
    assert differences(outcome.before, outcome.after) == []
    changed = differences(outcome.before, outcome.in_the_end)
    assert [key for key in changed if not key.endswith(": class")] == []  # what it runs may count on its class
    assert outcome.tables == []


@cases(ROWS)
def test_same_function(name: str, example: bool) -> None:
    row, outcome = BY_NAME[name], converted(name, example)
    if outcome.error is not None:
        assert_ours(outcome.error)
        return
    assert outcome.plain is not None
    source, plain = network_of(row), duplicate(outcome.plain)
    expected, got = results(row, source), results(row, plain)
    assert_equal(got, expected, 1e-4, strict_dtype=True)
    try:
        source, plain = doubled(network_of(row)), doubled(outcome.plain)
        expected = results(row, source, torch.float64)
    except (RuntimeError, TypeError, AttributeError):
        return  # a forward that takes float32 only
    assert_equal(results(row, plain, torch.float64), expected, ROUNDING)


@cases([row for row in ROWS if (row.layers, row.norms, row.operations) != (None, None, None)])
def test_merges(name: str, example: bool) -> None:
    row, outcome = BY_NAME[name], converted(name, example)
    assert outcome.plain is not None, outcome.error
    if row.needs_example and not example:
        report = ub.report(outcome.plain)
        assert "give an example input" in {refusal.remedy for refusal in (*report.refusals, *report.norms)}
        return
    layers, norms, operations = launched(duplicate(outcome.plain), row)
    expected = row.layers, row.norms, row.operations
    assert expected[0] in (None, layers)
    assert expected[1] in (None, norms)
    assert expected[2] is None or operations <= expected[2]


def test_corpus_is_sound() -> None:
    """Names are unique, and each row takes all its calls."""
    assert len(BY_NAME) == len(ROWS) >= 100
    for row in ROWS:
        results(row, network_of(row))


# Conversions


def network_of(row: Row) -> nn.Module:
    """The row's network: the same numbers each time, in evaluation, with norms as if trained, and caches empty."""
    forget(row)
    with own_random_numbers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = row.make().eval()
        if not any(is_lazy(t) for t in (*network.parameters(), *network.buffers())):
            randomise_statistics(network)
    return network


def duplicate(network: nn.Module) -> nn.Module:
    """A deep copy, of deep networks too."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        return copy.deepcopy(network)
    finally:
        sys.setrecursionlimit(limit)


def doubled(network: nn.Module) -> nn.Module:
    """A copy in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters of a copied ScriptModule are no leaves
        return duplicate(network).double()


def forget(row: Row) -> None:
    for table, _ in row.tables:
        table.cache_clear()


@cache
def converted(name: str, example: bool) -> Outcome:
    """Convert a row, once for all checks."""
    row = BY_NAME[name]
    network = network_of(row)
    args, example_input = fresh(row.calls[0]).args, None
    if example:
        example_input = args if len(args) > 1 or not isinstance(args[0], Tensor) else args[0]
    before = {**snapshot(network), "example": frozen(args)}
    plain, error = None, None
    try:
        plain = ub.collapse(network, example_input)
    except Exception as e:
        error = e
    after = {**snapshot(network), "example": frozen(args)}
    tables = [reason for table, arguments in row.tables if (reason := fault(table(*arguments)))]
    if plain is not None:
        with suppress(Exception):  # test_same_function says so
            results(row, duplicate(plain))
    in_the_end = {**snapshot(network), "example": frozen(args)}
    forget(row)
    return Outcome(before, after, in_the_end, plain, error, tables)


def fault(table: Tensor) -> str:
    """Why a cached table can't be used any more, or nothing."""
    kind = type(table).__name__, str(table.dtype), str(table.device)
    return "" if kind == ("Tensor", "torch.float32", "cpu") else " ".join(kind)


def assert_ours(error: Exception) -> None:
    if not isinstance(error, ub.UnbranchError):
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    assert str(error)


# Results


def fresh(call: Call, dtype: torch.dtype | None = None) -> Call:
    """The arguments, cloned, and of this floating type."""

    def clone(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone() if dtype is None else value.to(dtype, copy=True)
        if isinstance(value, list | tuple):
            return type(value)(map(clone, value))
        return {k: clone(v) for k, v in value.items()} if isinstance(value, dict) else value

    return Call(clone(call.args), clone(call.kwargs))


def results(row: Row, network: nn.Module, dtype: torch.dtype | None = None) -> list[Any]:
    """What all calls return, what they leave in their arguments, and what other code reads after each."""
    forget(row)
    outs = []
    with own_random_numbers(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in row.calls:
            made = fresh(call, dtype)
            outs.append([network(*made.args, **made.kwargs), made.args, made.kwargs])
            if row.also is not None:
                outs.append(copy.deepcopy(row.also(network, *fresh(call, dtype).args)))
    forget(row)
    return outs


def assert_equal(got: Any, expected: Any, tolerance: float, strict_dtype: bool = False, where: str = "result") -> None:
    """Equal structure and numbers; ``tolerance`` is relative to the largest number."""
    assert type(got) is type(expected), f"{where}: {type(got).__name__}, not {type(expected).__name__}"
    if isinstance(expected, Tensor):
        assert got.shape == expected.shape, where
        assert not strict_dtype or got.dtype == expected.dtype, f"{where}: {got.dtype}, not {expected.dtype}"
        kind = torch.complex128 if expected.is_complex() else torch.float64
        assert got.is_complex() == expected.is_complex(), where
        largest = expected.abs().max().item() if expected.numel() else 0.0
        if expected.dtype == torch.bfloat16:
            tolerance = 2e-2
        error = (got.to(kind) - expected.to(kind)).abs().max().item() if expected.numel() else 0.0
        assert error <= tolerance * max(largest, 1e-6), f"{where}: error {error:.1e}, largest {largest:.1e}"
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        for j, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_equal(a, b, tolerance, strict_dtype, f"{where}[{j}]")
    elif isinstance(expected, Mapping):
        assert list(got) == list(expected), where
        for key in expected:
            assert_equal(got[key], expected[key], tolerance, strict_dtype, f"{where}[{key!r}]")
    elif dataclasses.is_dataclass(expected):
        assert_equal(vars(got), vars(expected), tolerance, strict_dtype, where)
    else:
        assert got == expected, where


class Layers(TorchFunctionMode):
    """Counts calls of convolutions, linear layers and batch norms, by modules and by functions."""

    LINEAR = frozenset(
        (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear)
    )

    def __init__(self) -> None:
        super().__init__()
        self.layers = self.norms = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.layers += func in self.LINEAR
        self.norms += func in (F.batch_norm, torch.batch_norm)
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Counts what is launched; changing a view's shape isn't."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def launched(network: nn.Module, row: Row) -> tuple[int, int, int]:
    """Layers, norms and operations of the first call."""
    first = dataclasses.replace(row, calls=row.calls[:1], also=None)
    with Layers() as layers:
        results(first, network)
    made = fresh(row.calls[0])
    with torch.no_grad(), Operations() as operations:
        network(*made.args, **made.kwargs)
    return layers.layers, layers.norms, operations.count


# Snapshots


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """The same random numbers inside each time; outside nothing changes."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def snapshot(network: nn.Module) -> dict[str, Any]:
    """Everything that a conversion could change: of the network, bit for bit, and of the process."""
    seen: dict[str, Any] = {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "torch's random numbers": torch.get_rng_state().numpy().tobytes(),
        "python's random numbers": random.getstate(),
        "numpy's random numbers": [
            part.tobytes() if isinstance(part, np.ndarray) else part for part in np.random.get_state()
        ],
        "nn.Module.__call__": id(nn.Module.__call__),
        "nn.Module.__getattr__": id(nn.Module.__getattr__),
    }
    for path, module in network.named_modules():
        for key, value in vars(module).items():
            if key not in ("_modules", "__annotations__"):
                seen[f"{path}.{key}"] = frozen(value)
        seen[f"{path}: children"] = [(name, id(child)) for name, child in module._modules.items()]
        if not type(module).__module__.startswith("torch."):
            seen[f"{path}: class"] = {k: frozen(v) for k, v in vars(type(module)).items() if not k.startswith("__")}
    return seen


def frozen(value: Any) -> Any:
    """A value that can be compared later: tensors as bits and identity, containers by what they hold."""
    if isinstance(value, Tensor):
        return bits(value)
    if isinstance(value, bool | int | float | str | bytes | type(None)):
        return value
    if isinstance(value, Mapping):
        return [(frozen(k), frozen(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(frozen, value)]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return id(value) if not isinstance(value, Callable) else (type(value).__name__, getattr(value, "__qualname__", ""))


def bits(tensor: Tensor) -> tuple[Any, ...]:
    kind = id(tensor), type(tensor).__name__, tensor.dtype, str(tensor.device), tensor.layout, tensor.requires_grad
    if is_lazy(tensor) or tensor.is_meta:
        return kind
    data = tensor.detach()
    if tensor.layout != torch.strided:
        return *kind, str(data.to_dense().tolist())
    raw = data.int_repr() if tensor.is_quantized else data.resolve_conj().contiguous()
    strides = tensor.stride(), not tensor.is_leaf or tensor.grad is None, tensor._backward_hooks is None
    return *kind, *strides, raw.flatten().view(torch.uint8).numpy().tobytes()


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in {**before, **after} if before.get(key, "absent") != after.get(key, "absent")]
