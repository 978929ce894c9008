"""``unbranch recipes``: the settings that networks are trained with."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from unbranch.cli.app import app
from unbranch.cli.arguments import AsJson, readable
from unbranch.display import console, show_recipes
from unbranch.errors import InputError
from unbranch.train.recipe import list_recipes, load_recipe, to_yaml


@app.command(
    "recipes",
    epilog="""Examples:\n
  unbranch recipes\n
  unbranch recipes repvgg > mine.yaml\n
  unbranch recipes dbb model.name=resnet50 schedule.epochs=30\n
  unbranch recipes mine.yaml --json""",
)
@readable
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="A recipe of the list, or a .yaml file of your own.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values to change, for example optimizer.lr=0.2."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the published training recipes; with a name, print all that one says, ready to be changed."""
    if name is None:
        listed = list_recipes()
        if as_json:
            sys.stdout.write(json.dumps([asdict(recipe) for recipe in listed], indent=2) + "\n")
        else:
            console().print(show_recipes(listed))
        return
    if "=" in name:
        raise InputError(f"{name} changes a value of a recipe: name the recipe first")
    recipe = load_recipe(name, change or [])
    sys.stdout.write(json.dumps(asdict(recipe), indent=2) + "\n" if as_json else to_yaml(recipe))
