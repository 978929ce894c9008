"""``unbranch deploy`` and ``benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from unbranch.cli.app import app
from unbranch.cli.arguments import AsJson, Options, Size, Weights, load_network, report_errors
from unbranch.cli.output import print_result
from unbranch.display import steps_bar
from unbranch.errors import InputError
from unbranch.weights import load

Threads = Annotated[
    str | None, typer.Option(help="Threads of each runtime, for example 2 or 1,2; those of PyTorch by default.")
]
Batches = Annotated[str, typer.Option("--batch", help="Sizes of batches to time, for example 1,8.")]
Rounds = Annotated[int, typer.Option(min=0, help="Turns in which each file is timed.")]


@app.command(
    "deploy",
    epilog="""Examples:\n
  unbranch deploy timm:repvgg_a0 --weights a0.pth --data photos/ --to onnx,openvino -o deploy\n
  unbranch deploy runs/a0 --to all --int8 --max-drop 0.5 -o deploy\n
  unbranch deploy runs/a0 --to onnx,openvino --int8 --epochs 2 -o deploy\n
  unbranch deploy net.safetensors --to onnx,ncnn --half -o deploy""",
)
@report_errors
def deploy_command(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="A name, timm:NAME, torchvision:NAME, package.module:factory, a .safetensors file of Unbranch, or "
            "the directory of a run of `unbranch train`.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the files.")],
    to: Annotated[
        str,
        typer.Option(
            help="Targets: torch, aotinductor, onnx, openvino, ncnn, mnn, executorch, coreml, litert, tensorrt; or all."
        ),
    ] = "torch,onnx",
    data: Annotated[
        str | None,
        typer.Option(
            help="A directory of images, or a data set as for `unbranch train`. Default: the data of the run, or "
            "random numbers."
        ),
    ] = None,
    weights: Weights = None,
    half: Annotated[bool, typer.Option("--half", help="Write float16 files as well, where a target has them.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Write files in 8-bit integers as well.")] = False,
    max_drop: Annotated[
        float,
        typer.Option(
            help="Largest loss of accuracy of these, in percentage points; without labels, of images with another "
            "class."
        ),
    ] = 0.5,
    cpu: Annotated[
        str,
        typer.Option(help="CPU of the target for 8-bit integers: this, vnni (or ARM), or avx2, whose sums saturate."),
    ] = "this",
    calibration: Annotated[int, typer.Option(min=1, help="Images from which ranges are estimated.")] = 300,
    evaluation: Annotated[int, typer.Option(min=1, help="Images on which accuracy is measured.")] = 1000,
    epochs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Epochs of quantisation-aware training, if nothing else keeps accuracy within --max-drop. It needs "
            "a run, a data set or a folder of classes; after Ctrl-C, the same command continues.",
        ),
    ] = 0,
    images: Annotated[int, typer.Option(min=1, help="Number of images to compare on.")] = 32,
    threads: Threads = None,
    batch: Batches = "1",
    rounds: Rounds = 10,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="Let images have any height and width.")] = False,
    seed: Annotated[int, typer.Option(help="Of the choice of images.")] = 0,
    input_size: Size = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Collapse a network, convert it for each target, check every file in its own runtime, time all, say which to ship.

    A target that fails doesn't stop the others; the exit code is 1 then, unless all targets were asked for and one has
    a file. Files that compute something else aren't kept. If no target has a file, nothing is written.
    """
    from unbranch.deploy import deploy

    model, samples = _network_and_images(network, data, weights, input_size, option)
    counts = _numbers(threads, "--threads")
    if len(counts) > 1:
        raise InputError("--threads must be one number here; `unbranch benchmark` takes several")
    with steps_bar() as on_progress:
        result = deploy(
            model,
            samples,
            output,
            to=to,
            half=half,
            int8=int8,
            max_drop=max_drop,
            cpu=cpu,
            epochs=epochs,
            calibration=calibration,
            evaluation=evaluation,
            images=images,
            threads=next(iter(counts), None),
            batches=_numbers(batch, "--batch"),
            rounds=rounds,
            dynamic_size=dynamic_size,
            seed=seed,
            on_progress=on_progress,
        )
    print_result(result, as_json)
    if not result.usable or (result.failed and to.strip().lower() != "all"):
        raise typer.Exit(1)


@app.command(
    "benchmark",
    epilog="""Examples:\n
  unbranch benchmark deploy\n
  unbranch benchmark deploy --threads 1,2 --batch 1,8 --json > latency.json""",
)
@report_errors
def benchmark_command(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="The --output of `unbranch deploy`.")],
    threads: Threads = None,
    batch: Batches = "1",
    rounds: Rounds = 10,
    as_json: AsJson = False,
) -> None:
    """Time the files of a deployment in turns, a process for each."""
    from unbranch.deploy import benchmark

    counts = _numbers(threads, "--threads") or None
    with steps_bar() as on_progress:
        result = benchmark(
            directory, threads=counts, batches=_numbers(batch, "--batch"), rounds=rounds, on_progress=on_progress
        )
    print_result(result, as_json)


def _network_and_images(
    name: str, data: str | None, weights: Path | None, size: str | None, options: list[str] | None
) -> tuple[nn.Module, Any]:  # fmt: skip
    """Return the network and its images, or what they are loaded from."""
    run = Path(name)
    if not run.is_dir():
        return load_network(name, weights, size, options).model, data
    from unbranch.deploy.samples import RunImages
    from unbranch.train.run_directory import DEPLOY, RECIPE

    if not (run / RECIPE).is_file():
        raise InputError(f"{run} is a directory, but not of a run: it has no {RECIPE}")
    if weights is not None or size is not None or options:
        raise InputError("--weights, --input-size and --option need a network by name, not the directory of a run")
    if not (run / DEPLOY).is_file():
        raise InputError(f"{run} has no {DEPLOY}: its training isn't finished, see `unbranch train --resume`")
    return load(run / DEPLOY), RunImages(run, data)


def _numbers(text: str | None, flag: str) -> list[int]:
    try:
        numbers = [int(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers) or (text is not None and not numbers):
        raise InputError(f"{flag} must be positive numbers such as 1,8, got {text!r}")
    return numbers
