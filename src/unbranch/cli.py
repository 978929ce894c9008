"""The command ``unbranch``: parse, call the library, render what comes back."""

from __future__ import annotations

import functools
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ParamSpec, cast

import typer
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor, nn

from unbranch import __version__, demo
from unbranch.collapse import Report, collapse, explain, verify
from unbranch.deploy import OnnxFile, require_onnx, write_onnx
from unbranch.errors import InputError, UnbranchError
from unbranch.files import all_or_nothing
from unbranch.history import history_of, set_history
from unbranch.models import (
    create,
    example_input,
    input_size,
    load,
    load_weights,
    randomise_statistics,
    save,
    tells_its_network,
)
from unbranch.report import console, progress_bar, show_account, show_files, show_report, show_verification

P = ParamSpec("P")

app = typer.Typer(
    name="unbranch",
    help="Train with many branches, deploy one: collapse a network into a plain one that computes the same function.",
    epilog="Start with:  unbranch demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Network = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK", help="timm:NAME, torchvision:NAME, package.module:factory, or a file of ours, .safetensors."
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Trained weights: .safetensors, or .pth, .pt with nothing but tensors in it.")
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
    arguments = _arguments(options or [])
    if name.endswith(".safetensors"):
        if arguments:
            raise InputError(f"--option is for a network by name, and {name} is a file")
        network = load(name)
    else:
        network = create(name, **arguments).eval()
    if weights is not None:
        load_weights(network, weights)
    shape = _size(size) or input_size(network)
    set_history(network, replace(history_of(network), input_size=shape))
    return Named(network, example_input(network, shape))


@app.command(
    "collapse",
    epilog="""Examples:\n
  unbranch collapse timm:repvgg_a0 -o net.safetensors --weights a0.pth\n
  unbranch collapse torchvision:resnet18 -o net.safetensors --onnx net.onnx\n
  unbranch collapse my.models:make -o net.safetensors --option width=32""",
)
@readable
def collapse_command(
    network: Network,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the plain network, .safetensors.")],
    weights: Weights = None,
    onnx: Annotated[Path | None, typer.Option(help="Write an ONNX file, too.")] = None,
    input_size: Size = None,
    option: Options = None,
    strict: Annotated[bool, typer.Option(help="Fail if anything has to be refused.")] = False,
    as_json: AsJson = False,
) -> None:
    """Collapse a network and write the plain one."""
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output} should end in .safetensors")
    if onnx is not None:
        require_onnx()
    paths = [output, *([onnx] if onnx else [])]
    exported: OnnxFile | None = None
    with all_or_nothing(*paths) as temporary:
        found = named(network, weights, input_size, option)
        plain = collapse(found.network, found.example, strict=strict)
        save(plain, temporary[0])
        if onnx is not None:
            exported = replace(write_onnx(plain, found.example, temporary[1]), path=onnx)
    report = cast(Report, plain.collapse_report)
    values = {**report.to_dict(), "files": [str(path) for path in paths]}
    if exported is not None:
        values["onnx"] = exported.to_dict()
    _print(values, as_json, show_report(report), show_files(paths))


@app.command(
    "explain",
    epilog="""Examples:\n
  unbranch explain timm:repghostnet_100\n
  unbranch explain timm:fastvit_t8 --json > fastvit.json""",
)
@readable
def explain_command(
    network: Network,
    weights: Weights = None,
    input_size: Size = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Tell what would be merged into what, what would be refused and why, and what it saves; write nothing."""
    found = named(network, weights, input_size, option)
    report = explain(found.network, found.example)
    _print(report.to_dict(), as_json, show_report(report))


@app.command(
    "verify",
    epilog="""Examples:\n
  unbranch verify timm:mobileone_s1\n
  unbranch verify timm:repvgg_a0 net.safetensors --weights a0.pth\n
  unbranch verify my.models:old my.models:new --weights a.pth --other-weights b.pth""",
)
@readable
def verify_command(
    network: Network,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[OTHER]", help="A file from `unbranch collapse`, other weights of NETWORK, or another network."
        ),
    ] = None,
    weights: Weights = None,
    other_weights: Annotated[Path | None, typer.Option(help="Weights of OTHER, if that is a network.")] = None,
    input_size: Size = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Check that a network and its collapsed form, or another network, compute the same function.

    Without weights, batch norms get random statistics: fresh ones would hide a wrong merge. Exit code 1 if the two
    differ.
    """
    found = named(network, weights, input_size, option)
    if weights is None and other is None:
        randomise_statistics(found.network)
    second = _other(found, other, other_weights)
    verification = verify(found.network, second, found.example)
    _print(verification.to_dict(), as_json, show_verification(verification))
    if not verification.ok:
        raise typer.Exit(1)


@app.command(
    "demo",
    epilog="""Examples:\n
  unbranch demo\n
  unbranch demo --block repvgg --epochs 5\n
  unbranch demo --data fashion-mnist --data-dir data""",
)
@readable
def demo_command(
    block: Annotated[str, typer.Option(help="acb, dbb or repvgg.")] = "dbb",
    data: Annotated[str, typer.Option(help="digits or fashion-mnist.")] = "digits",
    epochs: Annotated[int | None, typer.Option(help="About a minute's worth unless given.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and of the order of the images.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the plain network, its ONNX file and the account.")] = Path(
        "demo-out"
    ),
    data_dir: Annotated[Path | None, typer.Option(help="Where the files of fashion-mnist are.")] = None,
) -> None:
    """Train a small network with branches on real images, collapse it, prove that nothing changed, time both."""
    settings = demo.Settings(block, data, epochs, seed, out, data_dir)
    with progress_bar(f"training with {block}") as advance:
        account = demo.run(settings, lambda step: advance(step.done, step.total, step.loss))
    console().print(show_account(account))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console().print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: other libraries' warnings are for developers, unless Python is told otherwise with -W."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    app()


def _other(found: Named, other: str | None, weights: Path | None) -> nn.Module:
    """What ``verify`` compares the network with."""
    if other is None:
        if weights is not None:
            raise InputError("--other-weights needs a second network")
        return collapse(found.network, found.example)
    if ":" in other and not Path(other).exists():
        return named(other, weights, ",".join(map(str, input_size(found.network))), None).network
    if weights is not None:
        raise InputError(f"--other-weights is for a network, and {other} is taken as a file")
    return load(other, None if tells_its_network(Path(other)) else found.network)


def _arguments(options: list[str]) -> dict[str, Any]:
    """``["width=32", "block=dbb"]`` to ``{"width": 32, "block": "dbb"}``: values are JSON, else text."""
    arguments: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--option {option} should read NAME=VALUE")
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


def _print(values: dict[str, Any], as_json: bool, *tables: RenderableType) -> None:
    if as_json:
        sys.stdout.write(json.dumps(values, indent=2, default=str) + "\n")
    else:
        console().print(*tables, sep="\n")


if __name__ == "__main__":
    main()
