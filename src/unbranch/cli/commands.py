"""The command ``unbranch``: parse, call the library, render what comes back."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from torch import nn

from unbranch import demo
from unbranch.cli.app import app
from unbranch.cli.arguments import (
    AsJson,
    Named,
    Network,
    Options,
    Size,
    Weights,
    arguments,
    named,
    readable,
    require_safetensors,
)
from unbranch.convert import collapse, explain, verify
from unbranch.convert.report import report as report_of
from unbranch.deploy import OnnxFile, require_onnx, write_onnx
from unbranch.display import (
    console,
    show_account,
    show_expansion,
    show_files,
    show_report,
    show_verification,
    training_bar,
)
from unbranch.errors import InputError
from unbranch.expansion import BLOCKS, ExpansionReport, expand
from unbranch.files import all_or_nothing
from unbranch.models import input_size, randomise_statistics
from unbranch.weights import is_self_describing, load, save


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
    require_safetensors(output)
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
    report = report_of(plain, "collapse")
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
    report = explain(found.network, found.example).report
    _print(report.to_dict(), as_json, show_report(report))


@app.command(
    "expand",
    epilog="""Examples:\n
  unbranch expand torchvision:mobilenet_v2 --block repvgg --weights mobilenet.pth -o branched.safetensors\n
  unbranch expand timm:resnet18 --block dbb --where 'layer3.*' --where 'layer4.*' -o branched.safetensors\n
  unbranch expand my.models:make --block replk --block-option small_kernel=3 -o branched.safetensors""",
)
@readable
def expand_command(
    network: Network,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the expanded network, .safetensors.")],
    block: Annotated[str, typer.Option(help=f"{', '.join(BLOCKS)}.")],
    where: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Paths of convolutions; may be repeated. Default: all.")
    ] = None,
    start: Annotated[str, typer.Option(help="How added branches start: zero or compensated.")] = "zero",
    weights: Weights = None,
    input_size: Size = None,
    option: Options = None,
    block_option: Annotated[
        list[str] | None,
        typer.Option("--block-option", metavar="NAME=VALUE", help="An argument for the block; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put blocks with branches in place of a network's convolutions, keeping its function, and write it for training.

    Read it back with unbranch.load(file), or unbranch.load(file, into=network) if its code is your own; explain and
    collapse take the file, too.
    """
    require_safetensors(output)
    with all_or_nothing(output) as (temporary,):
        found = named(network, weights, input_size, option)
        blocks = arguments(block_option or [], "--block-option")
        branched = expand(found.network, block, where or None, start=start, example_input=found.example, **blocks)
        save(branched, temporary)
    expansion: ExpansionReport = report_of(branched, "expand")
    values = {**expansion.to_dict(), "files": [str(output)]}
    _print(values, as_json, show_expansion(expansion), show_files([output]))


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
    with training_bar() as (watch, _):
        account = demo.run(settings, watch)
    console().print(show_account(account))


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
    return load(other, None if is_self_describing(Path(other)) else found.network)


def _print(values: dict[str, Any], as_json: bool, *tables: RenderableType) -> None:
    if as_json:
        sys.stdout.write(json.dumps(values, indent=2, default=str) + "\n")
    else:
        console().print(*tables, sep="\n")
