"""Stand-ins on the meta device have the shapes, dtypes and strides that PyTorch gives."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unbranch.graph.meta_mode import MetaMode


def _both(run: Callable[..., Any], *tensors: Tensor | None) -> tuple[Any, Any]:
    """What a function gives for numbers and for stand-ins, or that PyTorch refused the arguments.

    PyTorch's own meta tensors take more than numbers do.
    """

    def outcome(*given: Tensor | None) -> Any:
        try:
            return run(*given)
        except (RuntimeError, TypeError, ValueError):  # what PyTorch raises for arguments that don't fit
            return "an error"

    stand_ins = [None if t is None else torch.empty_like(t, device="meta") for t in tensors]
    with MetaMode():
        meta = outcome(*stand_ins)
    real = outcome(*(None if t is None else t.clone() for t in tensors))
    with torch.device("meta"):
        return (outcome(*stand_ins) if isinstance(real, str) else real), meta


def _assert_alike(real: Any, meta: Any) -> None:
    if isinstance(real, str) or isinstance(meta, str):
        assert real == meta
        return
    assert meta.is_meta
    assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


def test_convolutions_of_all_geometries_that_fit_and_that_do_not():
    draw, fits = random.Random(0), 0
    for _ in range(1500):
        n, groups = draw.choice([1, 2, 3]), draw.choice([1, 1, 2, 4])
        inputs, outputs = groups * draw.choice([1, 2, 3]), groups * draw.choice([1, 2])
        size = [draw.choice([1, 2, 3, 5]) for _ in range(n)]
        grid = [draw.choice([1, 4, 9, 10]) for _ in range(n)]
        x = torch.randn(draw.choice([1, 2, 3]), inputs + draw.choice([0, 0, 0, 1]), *grid)
        bias = draw.choice([None, torch.randn(outputs), torch.randn(outputs, dtype=torch.float64)])

        def pick(numbers: list[int]) -> Any:
            each = [draw.choice(numbers) for _ in range(n)]  # noqa: B023
            return draw.choice([each[0], each, tuple(each), (each[0],)])

        options = {"stride": pick([1, 2, 3]), "padding": pick([0, 1, 2]), "dilation": pick([1, 2]), "groups": groups}
        function = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
        real, meta = _both(lambda *t: function(*t, **options), x, torch.randn(outputs, inputs // groups, *size), bias)  # noqa: B023
        _assert_alike(real, meta)
        fits += isinstance(real, Tensor)
    assert fits > 500


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x, True),
    "relu, inplace": lambda x: F.relu(x, inplace=True),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "clamp": lambda x: x.clamp(0, 6),
    "clamp by tensors": lambda x: x.clamp(x - 1, x + 1),
    "sum": lambda x: x + x,
    "sum with a number": lambda x: 2 + x,
    "product with rows": lambda x: x * x[:, :1],
    "product with a larger one": lambda x: x[:, :1] * x,
    "product with another dtype": lambda x: x * x.double(),
    "product with integers": lambda x: x.long() * 2,
    "difference": lambda x: 1.5 - x,
    "complex": lambda x: x.float() + 1j,
    "out": lambda x: torch.add(x, x, out=torch.empty_like(x)),
    "alpha": lambda x: torch.add(x, x, alpha=2),
    "sigmoid": torch.sigmoid,
    "pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "pool to two": lambda x: F.adaptive_avg_pool2d(x, (2, None)),
    "pool by keyword": lambda x: F.adaptive_avg_pool2d(x, output_size=3),
    "pool rows": lambda x: F.adaptive_avg_pool1d(x[0], 2),
    "linear": lambda x: F.linear(x, torch.ones(3, 6)),
    "linear with a bias": lambda x: F.linear(x, torch.ones(3, 6), torch.ones(3)),
    "linear that does not fit": lambda x: F.linear(x, torch.ones(3, 5)),
    "linear with a wrong bias": lambda x: F.linear(x, torch.ones(3, 6), torch.ones(4)),
    "linear of one row": lambda x: F.linear(x[0, 0, 0], torch.ones(3, 6)),
}
_NEVER_FIT = {"linear that does not fit", "linear with a wrong bias"}


def _inputs() -> Iterator[tuple[str, Tensor]]:
    x = torch.randn(2, 4, 5, 6)
    yield "rows", x
    yield "channels last", x.to(memory_format=torch.channels_last)
    yield "transposed", torch.randn(2, 4, 6, 5).transpose(2, 3)
    yield "half", x.half()


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_functions_on_tensors_of_all_arrangements(name):
    for arrangement, x in _inputs():
        real, meta = _both(_FUNCTIONS[name], x)
        if arrangement != "half":  # which not every function takes together with float32 weights
            assert isinstance(real, Tensor) == (name not in _NEVER_FIT)
        if isinstance(real, Tensor) and not x.is_contiguous():  # arrangements may differ
            assert (meta.shape, meta.dtype) == (real.shape, real.dtype)
        else:
            _assert_alike(real, meta)


def test_a_conversion_imports_neither_the_compiler_nor_sympy():
    code = (
        "import sys, unbranch as ub; from unbranch.blocks import RepVGG; from torch import nn\n"
        "layers = RepVGG(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)\n"
        "ub.collapse(nn.Sequential(*layers).eval()); print([m for m in ('torch._dynamo', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
