"""``unbranch train``: train a network, collapse it, and verify the result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unbranch.cli.app import app
from unbranch.cli.arguments import AsJson, report_errors
from unbranch.cli.output import print_result
from unbranch.display import training_bar
from unbranch.errors import InputError

if TYPE_CHECKING:
    from unbranch.train import Recipe

Data = Annotated[
    str,
    typer.Option(
        help="digits, fashion-mnist[:DIRECTORY], cifar10:DIRECTORY, cifar100:DIRECTORY, hf:NAME, wds:PATTERN, or a "
        "directory."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the run directory.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan; train nothing, write nothing.")]


@app.command(
    "train",
    epilog="""Examples:\n
  unbranch train digits\n
  unbranch train acnet-cifar --data cifar10:data model.name=vgg16_cifar -o runs/vgg\n
  unbranch train repvgg --data /data/imagenet model.name=repvgg_a0 --dry-run\n
  unbranch train --resume -o runs/vgg --data cifar10:data\n
  accelerate launch --num_processes 8 -m unbranch.cli train replknet --data /data/imagenet -o runs/31b""",
)
@report_errors
def train_command(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe by name, see `unbranch recipes`, or a .yaml file.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe to change.")
    ] = None,
    data: Data = "digits",
    output: Annotated[
        Path | None, typer.Option("--output", "--out", "-o", help="Run directory; runs/RECIPE by default.")
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a network, collapse it, and compare both forms on the validation set.

    For several processes, GPUs or machines, start it with `accelerate launch` or `torchrun`.
    """
    settings, directory = _recipe_and_directory(recipe, changes or [], output, resume)
    run_recipe(settings, data, directory, resume=resume, dry_run=dry_run, as_json=as_json)


def run_recipe(recipe: Recipe, data: str, directory: Path, *, resume: bool, dry_run: bool, as_json: bool) -> None:
    """Run a recipe, or plan it with ``dry_run``, and print the result."""
    from unbranch.train import make_plan, open_data, train

    images = open_data(data)
    if dry_run:
        plan = make_plan(recipe, images, processes=int(os.environ.get("WORLD_SIZE", "1")))
        print_result(plan, as_json)
        return
    with training_bar() as (on_progress, log):
        result = train(recipe, images, directory, resume=resume, on_progress=on_progress, log=log)
    if result is not None:
        print_result(result, as_json)


def _recipe_and_directory(
    recipe: str | None, changes: list[str], output: Path | None, resume: bool
) -> tuple[Recipe, Path]:
    """Return the recipe and the run directory that the arguments describe."""
    from unbranch.train.recipe import load_recipe
    from unbranch.train.run_directory import RunDirectory

    if recipe is not None and "=" in recipe and not Path(recipe).exists():  # the first change, without a recipe
        changes, recipe = [recipe, *changes], None
    if recipe is None:
        if not resume or output is None:
            raise InputError("name a recipe (see `unbranch recipes`), or give --resume and --output DIRECTORY")
        return load_recipe(RunDirectory(output).recipe_path(), changes), output
    return load_recipe(recipe, changes), output or Path("runs") / Path(recipe).stem
