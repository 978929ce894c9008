"""``unbranch collapse``, ``explain``, ``expand`` and ``verify``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from unbranch.cli import onnx_files
from unbranch.cli.app import app
from unbranch.cli.arguments import (
    AsJson,
    LoadedNetwork,
    Network,
    Options,
    Size,
    Weights,
    arguments,
    load_network,
    report_errors,
    require_safetensors,
)
from unbranch.cli.output import print_result
from unbranch.convert import collapse, explain, verify
from unbranch.convert.report import report as report_of
from unbranch.deploy import OnnxFile, require_onnx, write_onnx
from unbranch.errors import InputError
from unbranch.expansion import BLOCKS, expand
from unbranch.files import all_or_nothing
from unbranch.models import input_size, randomise_statistics
from unbranch.render import to_rich, written_files
from unbranch.weights import is_self_describing, load, save

Freeze = Annotated[
    bool, typer.Option("--freeze", help="Of an ONNX file: take weights that are inputs as well for constants.")
]


@app.command(
    "collapse",
    epilog="""Examples:\n
  unbranch collapse timm:repvgg_a0 -o net.safetensors --weights a0.pth\n
  unbranch collapse torchvision:resnet18 -o net.safetensors --onnx net.onnx\n
  unbranch collapse my.models:make -o net.safetensors --option width=32\n
  unbranch collapse model.onnx -o plain.onnx""",
)
@report_errors
def collapse_command(
    network: Network,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for the plain network, .safetensors; of an ONNX file, .onnx.")
    ],
    weights: Weights = None,
    onnx: Annotated[Path | None, typer.Option(help="Write an ONNX file as well.")] = None,
    input_size: Size = None,
    option: Options = None,
    strict: Annotated[bool, typer.Option(help="Fail if anything has to be skipped.")] = False,
    freeze: Freeze = False,
    as_json: AsJson = False,
) -> None:
    """Collapse a network and write the plain one."""
    if onnx_files.is_file(network):
        onnx_files.refuse(weights=weights, onnx=onnx, input_size=input_size, option=option)
        onnx_files.collapse_file(network, output, strict, freeze, as_json)
        return
    require_safetensors(output)
    _only_of_files(freeze=freeze)
    if onnx is not None:
        require_onnx()
    paths = [output, *([onnx] if onnx else [])]
    exported: OnnxFile | None = None
    with all_or_nothing(*paths) as temporary:
        model, example = load_network(network, weights, input_size, option)
        plain = collapse(model, example, strict=strict)
        save(plain, temporary[0])
        if onnx is not None:
            exported = replace(write_onnx(plain, example, temporary[1]), path=onnx)
    report = report_of(plain, "collapse")
    onnx_values = {} if exported is None else {"onnx": exported.to_dict()}
    print_result(report, as_json, to_rich([written_files(paths)]), files=[str(path) for path in paths], **onnx_values)


@app.command(
    "explain",
    epilog="""Examples:\n
  unbranch explain timm:repghostnet_100\n
  unbranch explain timm:fastvit_t8 --json > fastvit.json\n
  unbranch explain model.onnx""",
)
@report_errors
def explain_command(
    network: Network,
    weights: Weights = None,
    input_size: Size = None,
    option: Options = None,
    freeze: Freeze = False,
    as_json: AsJson = False,
) -> None:
    """Show what collapse would merge, what it would skip and why, and what that saves; write nothing."""
    if onnx_files.is_file(network):
        onnx_files.refuse(weights=weights, input_size=input_size, option=option)
        onnx_files.explain_file(network, freeze, as_json)
        return
    _only_of_files(freeze=freeze)
    model, example = load_network(network, weights, input_size, option)
    print_result(explain(model, example).report, as_json)


@app.command(
    "expand",
    epilog="""Examples:\n
  unbranch expand torchvision:mobilenet_v2 --block repvgg --weights mobilenet.pth -o branched.safetensors\n
  unbranch expand timm:resnet18 --block dbb --where 'layer3.*' --where 'layer4.*' -o branched.safetensors\n
  unbranch expand my.models:make --block replk --block-option small_kernel=3 -o branched.safetensors""",
)
@report_errors
def expand_command(
    network: Network,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the expanded network, .safetensors.")],
    block: Annotated[str, typer.Option(help=f"{', '.join(BLOCKS)}.")],
    where: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Paths of convolutions; may be repeated. Default: all.")
    ] = None,
    start: Annotated[str, typer.Option(help="How added branches start: zero, or compensated by the kernel.")] = "zero",
    weights: Weights = None,
    input_size: Size = None,
    option: Options = None,
    block_option: Annotated[
        list[str] | None,
        typer.Option("--block-option", metavar="NAME=VALUE", help="An argument for the block; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replace convolutions of a network with blocks of branches, without changing its function.

    Load the file for training with unbranch.load(file), or unbranch.load(file, into=network) for a network of your
    own code; explain and collapse accept the file, too.
    """
    require_safetensors(output)
    with all_or_nothing(output) as (temporary,):
        model, example = load_network(network, weights, input_size, option)
        block_options = arguments(block_option or [], "--block-option")
        branched = expand(model, block, where or None, start=start, example_input=example, **block_options)
        save(branched, temporary)
    expansion = report_of(branched, "expand")
    print_result(expansion, as_json, to_rich([written_files([output])]), files=[str(output)])


@app.command(
    "verify",
    epilog="""Examples:\n
  unbranch verify timm:mobileone_s1\n
  unbranch verify timm:repvgg_a0 net.safetensors --weights a0.pth\n
  unbranch verify my.models:old my.models:new --weights a.pth --other-weights b.pth\n
  unbranch verify model.onnx plain.onnx --data photos""",
)
@report_errors
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
    data: Annotated[Path | None, typer.Option(help="For ONNX files: a folder of images. Default: random.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a network and its collapsed form, or another network, compute the same function.

    Without weights, batch norms get random statistics, since initial ones would hide a wrong merge. The exit code is
    1 if the two differ.
    """
    if onnx_files.is_file(network):
        onnx_files.refuse(weights=weights, other_weights=other_weights, input_size=input_size, option=option)
        if not onnx_files.verify_files(network, other, data, as_json):
            raise typer.Exit(1)
        return
    _only_of_files(data=data)
    loaded = load_network(network, weights, input_size, option)
    if weights is None and other is None:
        randomise_statistics(loaded.model)
    second = _other(loaded, other, other_weights)
    verification = verify(loaded.model, second, loaded.example_input)
    print_result(verification, as_json)
    if not verification.ok:
        raise typer.Exit(1)


def _only_of_files(**options: object) -> None:
    """Raise InputError for options that have a meaning for ONNX files alone."""
    for name, value in options.items():
        if value:
            raise InputError(f"--{name} is for ONNX files")


def _other(loaded: LoadedNetwork, other: str | None, weights: Path | None) -> nn.Module:
    """Return the network that ``verify`` compares the first one with."""
    if other is None:
        if weights is not None:
            raise InputError("--other-weights needs a second network")
        return collapse(loaded.model, loaded.example_input)
    if ":" in other and not Path(other).exists():
        return load_network(other, weights, ",".join(map(str, input_size(loaded.model))), None).model
    if weights is not None:
        raise InputError(f"--other-weights needs a network by name, and {other} is read as a file")
    return load(other, None if is_self_describing(Path(other)) else loaded.model)
