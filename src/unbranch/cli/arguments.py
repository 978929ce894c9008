"""What the arguments of the commands mean: networks by name, options, sizes, and errors in one line."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.text import Text
from torch import Tensor, nn

from unbranch.display import console
from unbranch.errors import InputError, UnbranchError
from unbranch.history import history_of, set_history
from unbranch.models import example_input, input_size
from unbranch.models.build import build_model
from unbranch.weights import load

P = ParamSpec("P")

Network = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK", help="timm:NAME, torchvision:NAME, package.module:factory, or a file of ours, .safetensors."
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Weights: .safetensors, ours of an expanded network, too; or .pth, .pt with nothing but tensors."
    ),
]
Size = Annotated[str | None, typer.Option(help="Input size, for example 3,224,224; the network's own otherwise.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="An argument for the network's factory; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def readable(command: Callable[P, None]) -> Callable[P, None]:
    """End with exit code 1 and one line on stderr where the library raises one of its errors."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UnbranchError as error:
            line = " ".join(str(error).split())
            console(stderr=True).print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)
            raise typer.Exit(1) from error

    return guarded


@dataclass(frozen=True)
class Named:
    """A network as the command line names it, in eval mode, with images that it takes."""

    network: nn.Module
    example: Tensor | tuple[list[Tensor]]


def named(name: str, weights: Path | None, size: str | None, options: list[str] | None) -> Named:
    """Build and load what the arguments of a command describe."""
    given = arguments(options or [])
    if name.endswith(".safetensors"):
        if given:
            raise InputError(f"--option is for a network by name, and {name} is a file")
        network = load(name)
    else:
        network = build_model(name, **given).eval()
    if weights is not None:
        network = load(weights, into=network)
    shape = _size(size) or input_size(network)
    set_history(network, replace(history_of(network), input_size=shape))
    return Named(network, example_input(network, shape))


def arguments(options: list[str], flag: str = "--option") -> dict[str, Any]:
    """``["width=32", "block=dbb"]`` to ``{"width": 32, "block": "dbb"}``: values are JSON, else text."""
    arguments: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{flag} {option} should read NAME=VALUE")
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
        raise InputError(f"--input-size {text} should be numbers like 3,224,224")
    return size


def require_safetensors(output: Path) -> None:
    """Raises InputError for a file name with another ending."""
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output} should end in .safetensors")
