"""Forwards that decide by their options or other arguments in ways that no trace sees, so that they have to be run."""

from __future__ import annotations

import builtins
import enum
import functools
import sys
import time
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.convert.kinds.table import call, conv_bn, row, tensor

FLAGS = "flags with a condition behind them"
KINDS = "options of other kinds than flags"
PIECES = "options that run a part in pieces"
PARTS = "parts that decide by their other arguments"
SEEN = "state that is seen outside"
WRITTEN = "writes that PyTorch doesn't count"

X = tensor(2, 4, 9, 11)
RAW = (call(X), call(X, True), call(X, raw=True))


class Normed(nn.Module):
    size = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)


def _is_tensor(value: Any) -> bool:
    return type(value) is torch.Tensor


class _Elsewhere:
    @staticmethod
    def is_tensor(value: Any) -> bool:
        return type(value) is torch.Tensor


INT, ISINSTANCE = int, isinstance
CONDITIONS: dict[str, Callable[[Any, Tensor], Any]] = {
    "dtype is float32": lambda net, y: y.dtype is torch.float32,
    "is a dtype": lambda net, y: isinstance(y.dtype, torch.dtype),
    "is a device": lambda net, y: isinstance(y.device, torch.device),
    "is_tensor": lambda net, y: torch.is_tensor(y),
    "has no mask": lambda net, y: getattr(y, "mask", None) is None,
    "has no tensors": lambda net, y: not hasattr(y, "tensors"),
    "isn't callable": lambda net, y: not callable(y),
    "has no gradient": lambda net, y: y.grad is None,
    "is an optional tensor": lambda net, y: isinstance(y, typing.Optional[torch.Tensor]),  # noqa: UP045
    "isinstance by another name": lambda net, y: ISINSTANCE(y, Tensor),
    "type in a function": lambda net, y: _is_tensor(y),
    "type in a static method": lambda net, y: _Elsewhere.is_tensor(y),
    "a type by another name": lambda net, y: type(net.size) is INT,
    "builtins.int": lambda net, y: type(net.size) is builtins.int,
    "the name of a type": lambda net, y: type(net.size).__name__ == "int",
    "a subclass of int": lambda net, y: issubclass(bool, int) and int(y.shape[2]) > 0,
    "no gradients": lambda net, y: not torch.is_grad_enabled() or torch.is_grad_enabled(),
    "no bias": lambda net, y: net.conv.bias is None,
    "statistics": lambda net, y: net.norm.running_mean is not None,
}
for _name, _holds in CONDITIONS.items():

    def _make(holds: Callable[[Any, Tensor], Any] = _holds) -> nn.Module:
        class Judging(Normed):
            def forward(self, x: Tensor, raw: bool = False) -> Tensor:
                y = self.conv(x)
                return y if raw and holds(self, y) else self.norm(y)

        return Judging()

    row(FLAGS, *RAW, name=f"flag and {_name}")(_make)


class Mode(enum.Enum):
    NORMED = 0
    RAW = 1


def _of_kind(default: Any, is_raw: Callable[[Any], bool]) -> Callable[[], nn.Module]:
    class Kind(Normed):
        def forward(self, x: Tensor, raw: Any = default) -> Tensor:
            y = self.conv(x)
            return y if is_raw(raw) else self.norm(y)

    return Kind


for _name, _default, _is_raw, _other in (
    ("None and False", None, lambda raw: raw is False, False),
    ("a number and True", 0, lambda raw: raw is True, True),
    ("an enumeration", Mode.NORMED, lambda raw: raw is Mode.RAW, Mode.RAW),
    ("a word", "normed", lambda raw: raw == "raw", "raw"),
    ("a flag and a word", False, lambda raw: raw == "raw", "raw"),
    ("a number", 0, lambda raw: raw == 7, 7),
    ("None and a word", None, lambda raw: raw == "raw", "raw"),
):
    row(KINDS, call(X), call(X, _other), call(X, raw=_other), name=f"option {_name}")(_of_kind(_default, _is_raw))


@row(KINDS, call(X), call(X, X))
class OptionThatIsTheInput(Normed):
    def forward(self, x: Tensor, other: Any = None) -> Tensor:
        y = self.conv(x)
        return y if other is x else self.norm(y)


@row(KINDS, call(X), call(X, torch.relu))
class OptionThatIsAFunction(Normed):
    def forward(self, x: Tensor, act: Any = None) -> Tensor:
        y = self.conv(x)
        return y if act is torch.relu else self.norm(y)


def _with_raw(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapper(self: Any, x: Tensor, raw: bool = False) -> Tensor:
        return self.conv(x) if raw else forward(self, x)  # type: ignore[no-any-return]

    return wrapper


def _popping(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        raw = kwargs.pop("raw", False)
        return self.conv(*args) if raw else forward(self, *args, **kwargs)  # type: ignore[no-any-return]

    return wrapper


@row(KINDS, *RAW)
class OptionOfADecorator(Normed):
    @_with_raw
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@row(KINDS, call(X), call(X, raw=True))
class OptionThatADecoratorPops(Normed):
    @_popping
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class _Block(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class _Skipping(Normed):
    def forward(self, x: Tensor, skip: Any) -> Tensor:
        return self.norm(self.conv(x)) + skip


_PIECES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "by its name": lambda net, x: net.part.conv(x),
    "by its children": lambda net, x: next(net.part.children())(x),
    "by a path": lambda net, x: net.get_submodule("part.conv")(x),
    "by a table": lambda net, x: dict(net.part.named_children())["conv"](x),
    "by its weight": lambda net, x: F.conv2d(x, net.part.conv.weight, padding=1),
    "by a loop": lambda net, x: next(m(x) for m in net.part.modules() if isinstance(m, nn.Conv2d)),
    "by its forward": lambda net, x: net.part.conv.forward(x),
}
for _name, _piece in _PIECES.items():
    for _option, _default, _value in (("flag", False, True), ("word", "", "raw")):

        def _pieces(
            piece: Callable[[Any, Tensor], Tensor] = _piece, default: Any = _default, value: Any = _value
        ) -> nn.Module:
            class Pieces(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.part = _Block()

                def forward(self, x: Tensor, raw: Any = default) -> Tensor:
                    return piece(self, x) if raw == value else torch.relu(self.part(x))

            return Pieces()

        row(PIECES, call(X), call(X, _value), name=f"part in pieces {_name}, {_option}")(_pieces)


@row(PIECES, call(X), call(X, 1), call(X, 4), call(X, depth=3))
class BodyUpToADepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(4, 4), nn.ReLU(), *conv_bn(4, 4))

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        return self.body(x) if depth is None else self.body[:depth](x)


@row(PIECES, call(X), call(X, True))
class FirstOfABody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = conv_bn(4, 4)

    def forward(self, x: Tensor, stem: bool = False) -> Tensor:
        return self.body[0](x) if stem else self.body(x)


@row(PIECES, call(X), call(X, True))
class PartOfTwoArgumentsInPieces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = _Skipping()

    def forward(self, x: Tensor, raw: bool = False) -> Tensor:
        return self.part.conv(x) if raw else self.part(x, x)


@row(PIECES, call(X), call(X, True, True), call(X, up=True), call(X, skip=True))
class PartWithTheNameOfAnOption(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = _Skipping()

    def forward(self, x: Tensor, up: bool = False, skip: bool = False) -> Tensor:
        return self.up.conv(x) if up and skip else self.up(x, x)


class _UnlessNone(Normed):
    def forward(self, x: Tensor, other: Any) -> Tensor:
        y = self.conv(x)
        return y if other is None else self.norm(y) + other


class _UnlessItself(Normed):
    def forward(self, x: Tensor, other: Any) -> Tensor:
        return self.conv(x) if other is x else self.norm(self.conv(x)) + other


class _UnlessWithoutShape(Normed):
    def forward(self, x: Tensor, other: Any) -> Tensor:
        y = self.conv(x)
        try:
            other.shape  # noqa: B018
        except AttributeError:
            return y
        return self.norm(y) + other


class _UnlessAList(Normed):
    def forward(self, x: Tensor, other: Any) -> Tensor:
        y = self.conv(x)
        match other:
            case [_]:
                return y
            case _:
                return self.norm(y)


class _UnlessWithoutNorm(Normed):
    def forward(self, x: Tensor, other: Any) -> Tensor:
        y = self.conv(x)
        return y if getattr(other, "norm", None) is None else self.norm(y)


def _given(make: Callable[[], nn.Module], other: Callable[[Tensor], Any], usual: Callable[[Tensor], Any]) -> Any:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = make()

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            y = torch.relu(self.part(x, usual(x) if labels is None else other(x)))
            if labels is not None and labels.max() > 1:
                return y, (y.mean((1, 2, 3)) - labels).abs().mean()
            return y

    return Given


LABELS = torch.tensor([1.0, 2.0])
for _name, _part, _other, _usual in (
    ("None", _UnlessNone, lambda x: None, lambda x: x),
    ("itself", _UnlessItself, lambda x: x, lambda x: x * 2),
    ("a number", _UnlessWithoutShape, lambda x: 3.0, lambda x: x),
    ("a list", _UnlessAList, lambda x: [3], lambda x: x),
    ("without an attribute", _UnlessWithoutNorm, lambda x: 3, lambda x: x),
):
    row(PARTS, call(X), call(X, LABELS), name=f"part that judges its argument: {_name}")(_given(_part, _other, _usual))


class _Early(Normed):
    early = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if self.early else self.norm(y)


@row(PARTS, call(X), call(X, LABELS), call(X))
class AttributeOfAPartIsSet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = _Early()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        self.part.early = labels is not None
        y = torch.relu(self.part(x))
        if labels is not None and labels.max() > 1:
            return y, labels
        return y


_RAW = None


def _set_raw(value: Any) -> None:
    global _RAW
    _RAW = value


def _get_raw() -> Any:
    return _RAW


@row(SEEN, *RAW, call(X))
class GlobalNameSetInAFunction(Normed):
    def forward(self, x: Tensor, raw: bool = False) -> Tensor:
        _set_raw(raw)
        y = self.conv(x)
        int(y.shape[2])
        return y if _get_raw() else self.norm(y)


class _AlwaysTrained(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum or 0.1, self.eps
        )


@row(WRITTEN, call(X), call(X))
def norm_that_is_always_trained() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3), _AlwaysTrained(4), nn.ReLU(), *conv_bn(4, 4))


@row(WRITTEN, call(X), call(X))
class CountsThroughNumpy(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.numpy()[:] += 1
        return self.norm(self.conv(x))


@row(WRITTEN, call(tensor(3, 4)))
class LinearLayerOfOneOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.weight = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(self.fc(x)), self.weight)


@row(WRITTEN, call(tensor(3, 4)))
class KernelWrittenBetweenTwoUses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("kernel", torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel * 1
        y = F.linear(x, weight)
        weight.mul_(2)
        return self.norm(y + F.linear(x, weight))


@row(WRITTEN, call(X))
class SumAddedToItself(Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + self.norm(x)
        y = y + y
        y += torch.relu(x)
        return y + y


ACTS = "options that do something"


@row(ACTS, call(X), call(X, False), norms=0)
class TellsTheTime(Normed):
    def forward(self, x: Tensor, timed: bool = False) -> Any:
        start = time.perf_counter()
        y = torch.relu(self.norm(self.conv(x)))
        return (y, time.perf_counter() - start) if timed else y


@row(ACTS, call(X), norms=0)
class GivesANumber(Normed):
    def forward(self, x: Tensor, number: bool = False) -> Any:
        y = torch.relu(self.norm(self.conv(x)))
        return {"mean": y.mean().item()} if number else y


@row(ACTS, call(X), call(X, True))
class GivesAText(Normed):
    def forward(self, x: Tensor, text: bool = False) -> Any:
        y = torch.relu(self.norm(self.conv(x)))
        return f"{y.mean().item():.3f}" if text else y


class _Acting(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.last = conv_bn(4, 4)

    def act(self, y: Tensor) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor, act: Any = None) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        if act is not None:
            self.act(y)
        return torch.relu(self.last(y))


@row(ACTS, call(X))
class WritesAFile(_Acting):
    def act(self, y: Tensor) -> None:
        with open("w.txt", "w") as file:
            file.write(str(tuple(y.shape)))


@row(ACTS, call(X))
class EndsTheProcessIfAsked(Normed):
    def forward(self, x: Tensor, dry_run: bool = False) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        if dry_run:
            sys.exit(3)
        return y


@row(ACTS, call(X))
class NeverEnds(Normed):
    def forward(self, x: Tensor, wait: bool = False) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        while wait:
            y = y * 1
        return y


@row(ACTS, call(X), call(X, 2))
class ManyTimes(Normed):
    def forward(self, x: Tensor, times: int = 1) -> Tensor:
        assert times <= 1_000_000
        y = torch.relu(self.norm(self.conv(x)))
        for _ in range(times):
            y = y.tanh()
        return y


ERRORS = "errors about traced values"


@row(ERRORS, call(X))
class RaisesASize(Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 3:
            raise ValueError(x.shape[-1])
        return torch.relu(self.norm(self.conv(x)))


@row(ERRORS, call(X))
class AssertsASize(Normed):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] > 2, x.shape[-1]
        return torch.relu(self.norm(self.conv(x)))


@row(ERRORS, call(X), call(X, "raw"))
class RaisesAnOption(Normed):
    def forward(self, x: Tensor, mode: str = "normed") -> Tensor:
        y = self.conv(x)
        if mode == "normed":
            return torch.relu(self.norm(y))
        if mode == "raw":
            return y
        raise NotImplementedError(mode)


AROUND = "forwards that reach into a part"


@row(AROUND, call(X), call(X, return_feats=True, raw=True), call(X, pool=True, raw=True), call(X, True, True, True))
class FiveFlags(Normed):
    def forward(
        self, x: Tensor, pool: bool = False, return_feats: bool = False, raw: bool = False, last: bool = False,
        as_dict: bool = False,
    ) -> Any:  # fmt: skip
        y = self.conv(x)
        z = self.norm(y)
        o: Any = z.relu()
        if pool:
            o = o.mean((2, 3))
        if last:
            return o
        if return_feats:
            o = (o, y if raw else z)
        return {"out": o} if as_dict else o


@row(AROUND, call(X), call(X, ("part.conv",)))
class HooksOnNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = _Block()

    def forward(self, x: Tensor, names: Any = ()) -> Any:
        found: dict[str, Tensor] = {}
        parts = dict(self.named_modules())
        hooks = [
            parts[name].register_forward_hook(lambda m, i, o, name=name: found.__setitem__(name, o)) for name in names
        ]
        y = torch.relu(self.part(x))
        for hook in hooks:
            hook.remove()
        return (y, found) if found else y


def _collected(module: nn.Module, x: Tensor, names: Any) -> dict[str, Tensor]:
    found = {}
    for name, child in module.named_children():
        x = child(x)
        if name in names:
            found[name] = x
    return found


@row(AROUND, call(X), call(X, ("0",)))
class WalksInAFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(4, 4), nn.ReLU())

    def forward(self, x: Tensor, names: Any = None) -> Any:
        return self.body(x) if names is None else _collected(self.body, x, names)


class _Told(Normed):
    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__()
        self.told = told

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.told["level"] > 7:
            self.told["middle"] = y
        return self.norm(y)


@row(AROUND, call(X), call(X, 9))
class PartThatIsTold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, Any] = {"level": 0}
        self.part = _Told(self.told)

    def forward(self, x: Tensor, level: int = 0) -> Any:
        self.told["level"] = level
        y = torch.relu(self.part(x))
        return (y, self.told["middle"]) if self.told["level"] > 7 else y


def _raw(part: Any, x: Tensor) -> Tensor:
    return part.conv(x)  # type: ignore[no-any-return]


@row(AROUND, call(X), call(X, _raw), call(X, runner=nn.Module.__call__))
class PartGivenToAFunctionOfTheCaller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = _Block()

    def forward(self, x: Tensor, runner: Any = nn.Module.__call__) -> Tensor:
        return torch.relu(runner(self.part, x))


@row(AROUND, call(X), call(X, _raw))
class PartGivenToAnOptionalFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = _Block()

    def forward(self, x: Tensor, runner: Any = None) -> Tensor:
        return torch.relu(self.part(x) if runner is None else runner(self.part, x))


@row(AROUND, call(X), call(X, True))
class HookOnALayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = _Block()

    def forward(self, x: Tensor, raw: bool = False) -> Tensor:
        if raw:
            found: list[Tensor] = []
            hook = self.part.conv.register_forward_hook(lambda m, i, o: found.append(o))
            self.part(x)
            hook.remove()
            return found[0]
        return torch.relu(self.part(x))
