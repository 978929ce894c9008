"""Random networks that write into views, kernels, masks, buffers and attributes, with optional arguments."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks import randomised

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda t: t[:, :, 1:3],
    "first row": lambda t: t[:, :, 0],
    "last column": lambda t: t[..., -1:],
    "first column": lambda t: t[:, :, :, :1],
    "middle": lambda t: t[:, :, 1:-1, 1:-1],
    "every other": lambda t: t[:, :, ::2],
    "half of the channels": lambda t: t[:, :2],
    "one channel": lambda t: t.select(1, 2),
    "last channel": lambda t: t[:, -1],
    "narrow": lambda t: t.narrow(2, 1, 2),
    "narrow from the end": lambda t: torch.narrow(t, 3, t.size(3) - 2, 2),
    "transposed": lambda t: t.transpose(2, 3)[:, :, :1],
    "permuted": lambda t: t.permute(0, 2, 3, 1)[..., :2],
    "mT": lambda t: t.mT[:, :, -1],
    "swapaxes": lambda t: t.swapaxes(1, 2)[:, 0],
    "movedim": lambda t: torch.movedim(t, 1, -1)[:, 0],
    "flat": lambda t: t.view(t.size(0), 4, -1)[:, :, :3],
    "flatten": lambda t: t.flatten(2)[:, 1],
    "reshape": lambda t: t.reshape(t.shape[0], 2, 2, *t.shape[2:])[:, 1],
    "unflatten": lambda t: t.unflatten(1, (2, 2))[:, 0],
    "view_as": lambda t: t.view_as(t)[:, :, :2],
    "chunk": lambda t: t.chunk(2, 1)[1],
    "split": lambda t: t.split([1, 3], dim=1)[0],
    "tensor_split": lambda t: torch.tensor_split(t, 2, dim=2)[0],
    "unbind": lambda t: t.unbind(1)[3],
    "loop": lambda t: list(t.unbind(2))[-1],
    "diagonal": lambda t: t.diagonal(dim1=2, dim2=3),
    "squeeze": lambda t: t[:, 1:2].squeeze(1),
    "unsqueeze": lambda t: t.unsqueeze(1)[:, :, :, :1],
    "None": lambda t: t[:, None, :2],
    "detach": lambda t: t.detach()[:, :, :1],
    "data": lambda t: t.data[:, :, -1:],
    "unfold": lambda t: t.unfold(2, 2, 2)[..., 0],
    "as_strided": lambda t: t.as_strided(t[:, :1].size(), t.stride()),
    "hsplit": lambda t: torch.hsplit(t, 2)[0],
    "whole": lambda t: t,
    "alias": lambda t: t[...],
    "to": lambda t: t.to(t.dtype)[:, :, 1],
    "contiguous": lambda t: t.contiguous()[:, 0],
    "real": lambda t: torch.view_as_complex(t[..., :2].unsqueeze(-1).expand(*t.shape[:3], 2, 2).contiguous()).real[
        ..., 0
    ],
}


def _set(view: Tensor, value: Tensor) -> None:
    view[...] = value.mean()


def _augment(view: Tensor, value: Tensor) -> None:
    view += value.mean()


def _out(view: Tensor, value: Tensor) -> None:
    torch.mul(view, 0.5, out=view)


WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "fill": lambda view, _: view.fill_(0.25),
    "zero": lambda view, _: view.zero_(),
    "scale": lambda view, _: view.mul_(-0.5),
    "shift": lambda view, _: view.add_(0.75),
    "clamp": lambda view, _: view.clamp_(min=0.0),
    "copy": lambda view, value: view.copy_(value.mean().expand_as(view)),
    "set": _set,
    "augment": _augment,
    "out": _out,
    "sub": lambda view, value: view.sub_(value.flatten()[0]),
    "neg": lambda view, _: view.neg_(),
    "masked": lambda view, _: view.masked_fill_(view > 0.5, 0.5),
    "relu": lambda view, _: F.relu(view, inplace=True),
}

BORDERS = ("zero", "bias", "number")


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False),
    "point": lambda: nn.Conv2d(4, 4, 1),
    "groups": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    "norm": lambda: nn.BatchNorm2d(4),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "identity": nn.Identity,
    "dropout": lambda: nn.Dropout(0.5),
}
KERNELS = ("conv", "point", "groups")


class WritingProgram(nn.Module):
    """Executes ``steps`` on a list of values ``(B, 4, H, W)``."""

    def __init__(self, layers: list[nn.Module], steps: list[tuple[Any, ...]], returned: list[int]) -> None:
        super().__init__()
        self.layers, self.steps, self.returned = nn.ModuleList(layers), steps, returned
        self.kernel, self.bias = nn.Parameter(torch.randn(4, 4, 3, 3) / 6), nn.Parameter(torch.randn(4))
        self.register_buffer("mask", (torch.rand(4, 4, 3, 3) > 0.3).float())
        self.register_buffer("calls", torch.zeros(()))
        self.kept: Any = None

    def forward(self, x: Tensor) -> Any:
        return run(self, x, True, 1.0)


class OptionalProgram(WritingProgram):
    """Runs some steps otherwise with a flag and a scale."""

    def forward(self, x: Tensor, flag: bool = True, scale: float = 1.0) -> Any:
        return run(self, x, flag, scale)


def run(program: WritingProgram, x: Tensor, flag: bool, scale: float) -> Any:
    """What a program returns; its operations are functions, since methods that run layers would keep them apart."""
    values = [x]
    for kind, sources, extra in program.steps:
        first, *others = (values[j] for j in sources)
        if kind == "optional":
            values.append(program.layers[extra](first) * scale if flag else first * 2)
        else:
            values.append(OPERATIONS[kind](program, extra, first, *others))
    return tuple(values[j] for j in program.returned)


def _layer(program: WritingProgram, extra: int, x: Tensor) -> Tensor:
    y: Tensor = program.layers[extra](x)
    return y


def _normed(program: WritingProgram, extra: tuple[int, int], x: Tensor) -> Tensor:
    y: Tensor = program.layers[extra[1]](program.layers[extra[0]](x))
    return y


def _branches(program: WritingProgram, extra: tuple[int, int, int], x: Tensor) -> Tensor:
    """A sum of two layers, one of them normed, put together in place."""
    y: Tensor = program.layers[extra[1]](program.layers[extra[0]](x))
    y += program.layers[extra[2]](x)
    return y


def _clone(_program: WritingProgram, _extra: Any, x: Tensor) -> Tensor:
    return x.clone()


def _add(_program: WritingProgram, extra: str, x: Tensor, y: Tensor) -> Tensor:
    if extra == "in place":
        x += y
        return x
    return x + y


def _write(_program: WritingProgram, extra: tuple[str, str], x: Tensor, y: Tensor) -> Tensor:
    """Change a part of a value; return the value."""
    view, change = extra
    WRITES[change](VIEWS[view](x), y)
    return x


def _border(program: WritingProgram, extra: tuple[str, int], x: Tensor) -> Tensor:
    y = F.pad(x, (1, 1, 1, 1))
    value = {"zero": 0.0, "bias": program.bias.view(1, -1, 1, 1), "number": 0.5}[extra[0]]
    y[:, :, :1] = value
    y[:, :, -1:] = value
    y[..., :1] = value
    y[..., -1:] = value
    z: Tensor = program.layers[extra[1]](y)
    return z


def _built(program: WritingProgram, extra: list[tuple[str, str]], x: Tensor) -> Tensor:
    """A kernel of its own, changed in parts."""
    kernel = program.kernel.clone()
    for view, change in extra:
        WRITES[change](VIEWS[view](kernel), program.bias)
    return F.conv2d(x, kernel, program.bias, padding=1)


def _masked(program: WritingProgram, extra: str, x: Tensor) -> Tensor:
    if extra == "written":
        program.kernel.data.mul_(program.mask)
    return F.conv2d(x, program.kernel if extra == "written" else program.kernel * program.mask, padding=1)


def _count(program: WritingProgram, extra: str, x: Tensor) -> Tensor:
    if extra == "buffer":
        program.calls.add_(1)
    else:
        program.kept = x.detach().clone() if extra == "keeps" else program.kept
    return x


def _late(_program: WritingProgram, extra: tuple[str, str], x: Tensor, y: Tensor) -> Tensor:
    """A view that is made before a write to what it shows, and read behind it."""
    view = VIEWS[extra[0]](x)
    WRITES[extra[1]](x, y)
    return y * view.mean()


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "layer": _layer, "normed": _normed, "branches": _branches, "clone": _clone, "add": _add, "write": _write,
    "border": _border, "built": _built, "masked": _masked, "count": _count, "late": _late,
}  # fmt: skip


def random_writing_program(seed: int) -> WritingProgram:
    """A program with a few layers, and writes between them."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []

    def made(*names: str) -> int:
        layers.append(LAYERS[draw.choice(names)]())
        return len(layers) - 1

    steps: list[tuple[Any, ...]] = [("normed", (0,), (made(*KERNELS), made("norm")))]
    kinds = ["layer"] * 3 + ["normed"] * 4 + ["branches"] * 2 + ["write"] * 4 + ["add"] * 2
    kinds += ["clone", "border", "built", "masked", "count", "late", "optional"]
    for _ in range(draw.randint(2, 7)):
        kind = draw.choice(kinds)
        last = len(steps)
        one = (draw.choice([last, last, last, draw.randint(0, last)]),)
        two = (*one, draw.randint(1, last))
        pair = draw.choice(list(VIEWS)), draw.choice(list(WRITES))
        if kind in ("layer", "optional"):
            steps.append((kind, one, made(*LAYERS)))
        elif kind == "normed":
            steps.append((kind, one, (made(*KERNELS), made("norm"))))
        elif kind == "branches":
            steps.append((kind, one, (made(*KERNELS), made("norm"), made(*KERNELS, "norm"))))
        elif kind in ("write", "late"):
            steps.append((kind, two, pair))
        elif kind == "add":
            steps.append((kind, two, draw.choice(["", "", "in place"])))
        elif kind == "border":
            layers.append(nn.Conv2d(4, 4, 3))
            steps.append((kind, one, (draw.choice(BORDERS), len(layers) - 1)))
        elif kind == "built":
            pairs = [(draw.choice(list(VIEWS)), draw.choice(list(WRITES))) for _ in range(draw.randint(1, 3))]
            steps.append((kind, one, pairs))
        elif kind == "masked":
            steps.append((kind, one, draw.choice(["written", "product", "product"])))
        elif kind == "count":
            steps.append((kind, one, draw.choice(["buffer", "keeps", "", ""])))
        else:
            steps.append((kind, one, None))
    last = len(steps)
    returned = sorted({last, draw.randint(1, last)})
    kind = OptionalProgram if any(step[0] == "optional" for step in steps) else WritingProgram
    return randomised(kind(layers, steps, returned), seed).double().eval()
