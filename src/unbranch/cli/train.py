"""``unbranch train``: from images to a collapsed, verified network."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from unbranch.cli.app import app
from unbranch.cli.arguments import AsJson, readable
from unbranch.display import console, show_plan, show_result, training_bar
from unbranch.errors import InputError
from unbranch.train.data import open_data
from unbranch.train.engine import train
from unbranch.train.folder import Folder
from unbranch.train.plan import make_plan
from unbranch.train.recipe import Recipe, load_recipe


@app.command(
    "train",
    epilog="""Examples:\n
  unbranch train digits\n
  unbranch train acnet-cifar --data cifar10:data model.name=vgg16_cifar -o runs/vgg\n
  unbranch train repvgg --data /data/imagenet model.name=repvgg_a0 --dry-run\n
  unbranch train --resume -o runs/vgg --data cifar10:data\n
  accelerate launch --num_processes 8 -m unbranch.cli train replknet --data /data/imagenet -o runs/31b""",
)
@readable
def train_command(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe by name, see `unbranch recipes`, or a .yaml file of your own.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe to change.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="digits, fashion-mnist[:FOLDER], cifar10:FOLDER, cifar100:FOLDER, hf:NAME, wds:PATTERN, or a folder."
        ),
    ] = "digits",
    out: Annotated[
        Path | None, typer.Option("--output", "--out", "-o", help="The run's folder; runs/RECIPE unless given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, run nothing, write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network, collapse it, and verify the plain one on the validation set.

    Several processes, GPUs and machines: start it under `accelerate launch` or `torchrun`.
    """
    settings, folder = _chosen(recipe, changes or [], out, resume)
    carry_out(settings, data, folder, resume, dry_run, as_json)


def carry_out(settings: Recipe, data: str, folder: Path, resume: bool, dry_run: bool, as_json: bool) -> None:
    """The run of a recipe on data by name, or its plan; what comes out is printed."""
    images = open_data(data)
    if dry_run:
        plan = make_plan(settings, images, int(os.environ.get("WORLD_SIZE", "1")))
        _print(plan.to_dict() if as_json else None, None if as_json else show_plan(plan))
        return
    with training_bar() as (watch, say):
        result = train(settings, images, folder, resume=resume, watch=watch, say=say)
    if result is not None:
        _print(result.to_dict() if as_json else None, None if as_json else show_result(result))


def _chosen(recipe: str | None, changes: list[str], out: Path | None, resume: bool) -> tuple[Recipe, Path]:
    """The recipe and the folder that the arguments mean."""
    if recipe is not None and "=" in recipe and not Path(recipe).exists():  # a change in the recipe's place
        changes, recipe = [recipe, *changes], None
    if recipe is None:
        if not resume or out is None:
            raise InputError("name a recipe (see `unbranch recipes`), or --resume with --out FOLDER")
        return load_recipe(Folder(out).recipe(), changes), out
    return load_recipe(recipe, changes), out or Path("runs") / Path(recipe).stem


def _print(values: object, table: object) -> None:
    if table is None:
        sys.stdout.write(json.dumps(values, indent=2, default=str) + "\n")
    else:
        console().print(table)
