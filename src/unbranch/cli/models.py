"""``unbranch models``: the networks of the package and their costs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from unbranch.cli.app import app
from unbranch.cli.arguments import AsJson, report_errors
from unbranch.cli.output import print_json
from unbranch.display import catalogue_table, console, models_page, names_table
from unbranch.errors import InputError
from unbranch.models import list_models
from unbranch.models.catalogue import catalogue
from unbranch.models.registry import MODELS
from unbranch.render import to_rich


@app.command(
    "models",
    epilog="""Examples:\n
  unbranch models\n
  unbranch models 'repvgg_b*' 'replknet*' --costs\n
  unbranch models 'timm:*mobileone*'\n
  unbranch models --costs --json > models.json""",
)
@report_errors
def models_command(
    pattern: Annotated[
        list[str] | None, typer.Argument(help="Patterns of names, with * and ?; timm:PATTERN for timm's.")
    ] = None,
    costs: Annotated[
        bool, typer.Option(help="Show parameters and MACs of both forms, and published accuracy.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of the documentation.")] = False,
    as_json: AsJson = False,
) -> None:
    """List networks by name; with --costs, what each costs in its training form and its deploy form."""
    names = list_models(pattern or "*")
    if not names:
        raise InputError(f"no network has a name like {', '.join(pattern or [])}")
    if (costs or markdown) and any(name not in MODELS for name in names):
        raise InputError("--costs and --markdown are for networks of Unbranch; see unbranch explain timm:NAME")
    if markdown:
        sys.stdout.write(models_page(catalogue(names)))
    elif as_json:
        print_json([row.to_dict() for row in catalogue(names)] if costs else names)
    else:
        console().print(to_rich([catalogue_table(catalogue(names)) if costs else names_table(names)]))
