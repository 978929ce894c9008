"""``unbranch prune``: prune the channels of a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from unbranch.cli.app import app
from unbranch.cli.arguments import AsJson, report_errors
from unbranch.cli.train import DryRun, Resume, run_recipe
from unbranch.errors import InputError


@app.command(
    "prune",
    epilog="""Examples:\n
  unbranch prune resnet8_cifar --weights w.safetensors --data fashion-mnist --target 0.5 schedule.epochs=20\n
  unbranch prune torchvision:resnet50 --weights resnet50.pth --data /data/imagenet --recipe resrep-imagenet\n
  unbranch prune timm:mobilenetv2_100 --weights w.pth --data /data/pets --target 0.6 --runtime onnx\n
  unbranch prune resnet56_cifar --weights w.pth --data cifar10:data prune.multiple=1 prune.granularity=4""",
)
@report_errors
def prune_command(
    model: Annotated[str, typer.Argument(help="A name, timm:NAME, torchvision:NAME or package.module:factory.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe to change.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Trained weights: a file, or an id on the hub.")] = None,
    data: Annotated[str, typer.Option(help="As for `unbranch train`.")] = "digits",
    target: Annotated[
        float | None, typer.Option(help="Largest cost after pruning, as a fraction of the cost before.")
    ] = None,
    metric: Annotated[
        Literal["macs", "params", "latency"] | None, typer.Option(help="Of the cost; macs by default.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="Reduce the latency in this runtime, torch, onnx, openvino or another target of `unbranch deploy`; "
            "implies --metric latency."
        ),
    ] = None,
    layers: Annotated[
        Literal["internal", "all"] | None,
        typer.Option(help="Prune internal layers, as in the paper, or all that can be pruned."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe with a section `prune`.")] = "resrep",
    output: Annotated[
        Path | None, typer.Option("--output", "--out", "-o", help="Run directory; runs/prune-MODEL by default.")
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Prune a trained network with ResRep: insert compactors, train, mask channels, remove them, compare both forms.

    The pruned network is deploy.safetensors in the run directory; unbranch.load reads it without your code.
    """
    from unbranch.train import load_recipe

    if runtime is not None and metric is None:
        metric = "latency"
    given = {
        "model.pretrained": weights, "prune.target": target, "prune.metric": metric, "prune.runtime": runtime,
        "prune.layers": layers,
    }  # fmt: skip
    settings = load_recipe(
        recipe, [f"model.name={model}", *(f"{k}={v}" for k, v in given.items() if v is not None), *(changes or [])]
    )
    if settings.prune is None:
        raise InputError(f"`--recipe` must have a section `prune`, and {recipe} has none; resrep is one that has it")
    directory = output or Path("runs") / f"prune-{model.replace(':', '-').replace('/', '-')}"
    run_recipe(settings, data, directory, resume=resume, dry_run=dry_run, as_json=as_json)
