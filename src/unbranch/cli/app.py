"""The command itself, which the commands of the other files are put on."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from unbranch import __version__
from unbranch.display import console

app = typer.Typer(
    name="unbranch",
    help="Train with many branches, deploy one: collapse a network into a plain one that computes the same function.",
    epilog="Start with:  unbranch demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console().print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: other libraries' warnings are for developers, unless Python is told otherwise with -W."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    app()
