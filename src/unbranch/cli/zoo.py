"""``unbranch models``: what there is, what it costs."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from unbranch.cli.app import app
from unbranch.cli.arguments import AsJson, readable
from unbranch.display import console, models_page, show_names, show_rows
from unbranch.errors import InputError
from unbranch.models import list_models
from unbranch.models.catalogue import catalogue
from unbranch.models.registry import MODELS


@app.command(
    "models",
    epilog="""Examples:\n
  unbranch models\n
  unbranch models 'repvgg_b*' 'replknet*' --costs\n
  unbranch models 'timm:*mobileone*'\n
  unbranch models --costs --json > models.json""",
)
@readable
def models_command(
    pattern: Annotated[list[str] | None, typer.Argument(help="Which names, with * and ?; timm:PATTERN, too.")] = None,
    costs: Annotated[bool, typer.Option(help="Parameters and MACs in both forms, and published accuracy.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of the documentation.")] = False,
    as_json: AsJson = False,
) -> None:
    """List networks by name; with --costs, what each costs with its branches and without."""
    names = list_models(pattern or "*")
    if not names:
        raise InputError(f"no network is called {', '.join(pattern or [])}")
    if (costs or markdown) and any(name not in MODELS for name in names):
        raise InputError("--costs and --markdown are for networks of Unbranch; see unbranch explain timm:NAME")
    if markdown:
        sys.stdout.write(models_page(catalogue(names)))
    elif costs and as_json:
        sys.stdout.write(json.dumps([row.to_dict() for row in catalogue(names)], indent=2) + "\n")
    elif as_json:
        sys.stdout.write(json.dumps(names, indent=2) + "\n")
    else:
        console().print(show_rows(catalogue(names)) if costs else show_names(names))
