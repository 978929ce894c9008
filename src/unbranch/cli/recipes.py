"""``unbranch recipes``: the published training recipes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from unbranch.cli.app import app
from unbranch.cli.arguments import AsJson, report_errors
from unbranch.cli.output import print_json
from unbranch.display import console
from unbranch.errors import InputError
from unbranch.render import Table, to_rich


@app.command(
    "recipes",
    epilog="""Examples:\n
  unbranch recipes\n
  unbranch recipes repvgg > mine.yaml\n
  unbranch recipes dbb model.name=resnet50 schedule.epochs=30\n
  unbranch recipes mine.yaml --json""",
)
@report_errors
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="A recipe of the list, or a .yaml file.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, for example optimizer.lr=0.2."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the published training recipes; with a name, print all settings of one."""
    from unbranch.train.recipe import list_recipes, load_recipe, to_yaml

    if name is None:
        listed = list_recipes()
        if as_json:
            print_json([asdict(recipe) for recipe in listed])
        else:
            rows = [(recipe.name, recipe.about, recipe.source) for recipe in listed]
            console().print(to_rich([Table(("recipe", "for", "source"), rows)]))
        return
    if "=" in name:
        raise InputError(f"{name} changes a setting of a recipe: name the recipe first")
    recipe = load_recipe(name, change or [])
    if as_json:
        print_json(asdict(recipe))
    else:
        sys.stdout.write(to_yaml(recipe))
