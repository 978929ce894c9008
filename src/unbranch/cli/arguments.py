"""Arguments that several commands have: networks by name, options, sizes; and errors as one line."""

from __future__ import annotations

import functools
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, ParamSpec

import typer
from rich.text import Text
from torch import Tensor, nn

from unbranch.display import console
from unbranch.errors import InputError, UnbranchError
from unbranch.models import example_input, input_size
from unbranch.models.build import build_model
from unbranch.provenance import provenance_of, set_provenance
from unbranch.weights import load

P = ParamSpec("P")
INTERRUPTED = 130  # exit code of a program that Ctrl-C has ended

Network = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="A name, timm:NAME, torchvision:NAME, package.module:factory, a .safetensors file of Unbranch, or an "
        ".onnx file.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Weights: a .safetensors file, also of an expanded network, or a .pth or .pt file of tensors only."
    ),
]
Size = Annotated[str | None, typer.Option(help="Input size, for example 3,224,224; that of the network by default.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="An argument for the network's factory; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def report_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Report errors of the library as one line on stderr, with exit code 1; Ctrl-C ends with 130."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _ending_cleanly():
                command(*args, **kwargs)
        except UnbranchError as error:
            line = " ".join(str(error).split())
            console(stderr=True).print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            console(stderr=True).print("interrupted")
            raise typer.Exit(INTERRUPTED) from None

    return guarded


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP remove temporary files, too: they end the process like an exit."""

    def end(number: int, frame: object) -> NoReturn:  # noqa: ARG001
        raise SystemExit(128 + number)

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


class LoadedNetwork(NamedTuple):
    """A network in evaluation mode, with images that it takes."""

    model: nn.Module
    example_input: Tensor | tuple[list[Tensor]]


def load_network(name: str, weights: Path | None, size: str | None, options: list[str] | None) -> LoadedNetwork:
    """Make the network that the arguments of a command describe, and load its weights."""
    given = arguments(options or [])
    if name.endswith(".safetensors"):
        if given:
            raise InputError(f"--option needs a network by name, and {name} is a file")
        network = load(name)
    else:
        network = build_model(name, **given).eval()
    if weights is not None:
        network = load(weights, into=network)
    shape = _size(size) or input_size(network)
    set_provenance(network, replace(provenance_of(network), input_size=shape))
    return LoadedNetwork(network, example_input(network, shape))


def arguments(options: list[str], flag: str = "--option") -> dict[str, Any]:
    """Return ``{"width": 32, "block": "dbb"}`` for ``["width=32", "block=dbb"]``; values are JSON, else text."""
    arguments: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{flag} must read NAME=VALUE, got {option!r}")
        try:
            arguments[name] = json.loads(text)
        except json.JSONDecodeError:
            arguments[name] = text
    return arguments


def _size(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        size = tuple(int(part) for part in text.split(","))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        raise InputError(f"--input-size must be numbers such as 3,224,224, got {text!r}")
    return size


def require_safetensors(output: Path) -> None:
    """Raise InputError for a file name with another suffix."""
    if output.suffix != ".safetensors":
        raise InputError(f"--output must end in .safetensors, got {output}")
