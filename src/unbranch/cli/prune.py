"""``unbranch prune``: a trained network, made narrower without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from unbranch.cli.app import app
from unbranch.cli.arguments import AsJson, readable
from unbranch.cli.train import carry_out
from unbranch.train import load_recipe


@app.command(
    "prune",
    epilog="""Examples:\n
  unbranch prune resnet8_cifar --weights w.safetensors --data fashion-mnist --target 0.5 schedule.epochs=20\n
  unbranch prune torchvision:resnet50 --weights resnet50.pth --data /data/imagenet --recipe resrep-imagenet\n
  unbranch prune timm:mobilenetv2_100 --weights w.pth --data /data/pets --target 0.6 --metric latency --dry-run\n
  unbranch prune resnet56_cifar --weights w.pth --data cifar10:data prune.multiple=1 prune.granularity=4""",
)
@readable
def prune_command(
    model: Annotated[str, typer.Argument(help="Ours, timm:NAME, torchvision:NAME or package.module:factory.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe to change.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Trained weights: a file, or an id on the hub.")] = None,
    data: Annotated[str, typer.Option(help="As for `unbranch train`.")] = "digits",
    target: Annotated[float | None, typer.Option(help="Cost that may be left, as a fraction.")] = None,
    metric: Annotated[
        Literal["macs", "params", "latency"] | None, typer.Option(help="Of cost; macs unless given.")
    ] = None,
    layers: Annotated[
        Literal["internal", "all"] | None, typer.Option(help="internal ones as in the paper, or all that can be.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe with a section prune.")] = "resrep",
    out: Annotated[
        Path | None, typer.Option("--output", "--out", "-o", help="Folder; runs/prune-MODEL unless given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, run nothing, write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prune a trained network by ResRep: compactors, training, masks, conversion, and the proof that nothing is lost.

    The folder has the pruned network in deploy.safetensors, which unbranch.load reads without your code.
    """
    given = {"model.pretrained": weights, "prune.target": target, "prune.metric": metric, "prune.layers": layers}
    settings = load_recipe(
        recipe, [f"model.name={model}", *(f"{k}={v}" for k, v in given.items() if v is not None), *(changes or [])]
    )
    folder = out or Path("runs") / f"prune-{model.replace(':', '-').replace('/', '-')}"
    carry_out(settings, data, folder, resume, dry_run, as_json)
