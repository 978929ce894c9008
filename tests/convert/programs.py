"""Random networks: programs of layers and operations on earlier values, for the converter's property tests."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Program(nn.Module):
    """Executes ``steps``: each makes a new value from earlier ones; the last values are returned."""

    def __init__(self, steps: list[tuple[Any, ...]], layers: dict[str, nn.Module], returned: list[int]) -> None:
        super().__init__()
        self.steps, self.returned = steps, returned
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in self.steps:
            values.append(self.run(step, values))
        return tuple(values[j] for j in self.returned)

    def run(self, step: tuple[Any, ...], values: list[Any]) -> Any:
        kind, sources, extra = step
        first = values[sources[0]]
        if kind == "layer":
            return self.layers[extra](first)
        if kind == "cat":
            return torch.cat([values[j] for j in sources], 1)
        if kind == "half":
            return first.chunk(2, 1)[extra]
        return _OPERATIONS[kind](*(values[j] for j in sources))


def _iadd(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


_OPERATIONS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "alpha": lambda a, b: torch.add(a, b, alpha=2),
    "iadd": _iadd,
    "sum": lambda a, b, c: sum([a, b, c]),
    "relu": F.relu,
    "relu_": lambda a: F.relu(a, inplace=True),
    "product": lambda a, b: a * b,
    "half_as_big": lambda a: a * 0.5,
    "shifted": lambda a: 1.5 - a,
    "pad": lambda a: F.pad(a, (1, 0, 2, 1)),
    "reflect": lambda a: F.pad(a, (1, 1, 1, 1), mode="reflect"),
    "crop": lambda a: a[:, :, 1:, :-1],
    "mean": lambda a: a + a.mean((2, 3), keepdim=True),
    "stack": lambda a, b: torch.stack([a, b]).sum(0),
}


def random_program(seed: int) -> Program:
    """A program that runs on inputs ``(N, 4, 13, 15)``, and whose sums never broadcast."""
    rng = random.Random(seed)
    length = rng.randint(3, 26)
    torch.manual_seed(seed)
    steps: list[tuple[Any, ...]] = []
    layers: dict[str, nn.Module] = {}
    shapes = [(4, 13, 15)]
    program = Program(steps, layers, [0])
    while len(steps) < length:
        step = _random_step(rng, shapes, program.layers)
        shape = _shape_after(program, step, shapes)
        if shape is None:
            continue
        steps.append(step)
        shapes.append(shape)
    used = {j for _, sources, _ in steps for j in sources}
    program.returned = [j for j in range(1, len(shapes)) if j not in used or rng.random() < 0.1]
    return program.double()


def _shape_after(program: Program, step: tuple[Any, ...], shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    program.eval()
    try:
        with torch.no_grad():
            out = program.run(step, [torch.zeros(1, *s, dtype=torch.float64) for s in shapes])
    except (RuntimeError, ValueError, IndexError):
        return None
    shape = tuple(out.shape[1:])
    return shape if 0 < shape[0] <= 16 and min(shape[1:]) > 3 else None


def _random_step(rng: random.Random, shapes: list[tuple[int, ...]], layers: nn.ModuleDict) -> tuple[Any, ...]:
    kind = rng.choice([*["layer"] * 14, "cat", "half", *_OPERATIONS, "add", "add", "sum"])
    source = rng.choice(range(max(0, len(shapes) - 5), len(shapes)))
    alike = [j for j, s in enumerate(shapes) if s == shapes[source]]
    if kind == "layer":
        if layers and rng.random() < 0.08:
            return kind, [source], rng.choice(list(layers))
        name = f"layer{len(layers)}"
        layers[name] = _random_layer(rng, shapes[source][0]).double()
        return kind, [source], name
    if kind == "cat":
        return kind, [rng.choice(alike) for _ in range(2)], None
    if kind == "half":
        return kind, [source], rng.choice([0, 1])
    wanted = _OPERATIONS[kind].__code__.co_argcount
    return kind, [source, *(rng.choice(alike) for _ in range(wanted - 1))], None


def _random_layer(rng: random.Random, channels: int) -> nn.Module:
    kind = rng.choice(["conv"] * 5 + ["norm"] * 4 + ["pool", "dropout", "identity", "transposed", "point", "point"])
    if kind == "norm":
        return nn.BatchNorm2d(channels, affine=rng.random() < 0.9, track_running_stats=rng.random() < 0.95)
    if kind == "pool":
        return nn.AvgPool2d(
            rng.choice([2, 3]), rng.choice([1, 2]), rng.choice([0, 1]), count_include_pad=rng.random() < 0.7
        )
    if kind in ("dropout", "identity"):
        return nn.Dropout(0.5) if kind == "dropout" else nn.Identity()
    groups = rng.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    out = rng.choice([c for c in (4, 6, 8, channels) if c % groups == 0] or [channels])
    bias = rng.random() < 0.4
    if kind == "transposed":
        return nn.ConvTranspose2d(channels, out, 3, rng.choice([1, 2]), 1, groups=groups, bias=bias)
    if kind == "point":
        return nn.Conv2d(channels, out, 1, rng.choice([1, 1, 2]), groups=groups, bias=bias)
    size = rng.choice([3, 3, 2, (1, 3), (3, 1), 5])
    dilation = rng.choice([1, 1, 1, 2])
    sizes = size if isinstance(size, tuple) else (size, size)
    padding = rng.choice([tuple(dilation * (k - 1) // 2 for k in sizes)] * 3 + [(0, 0), (1, 2)])
    mode = rng.choice(["zeros"] * 5 + ["reflect", "replicate", "circular"])
    return nn.Conv2d(channels, out, size, rng.choice([1, 1, 1, 2]), padding, dilation, groups, bias, mode)
