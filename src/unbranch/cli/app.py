"""The application, on which the other modules register their commands."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
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
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    _make_working_directory_importable(context)
    if version:
        console().print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. Warnings of other libraries are hidden unless Python is started with -W."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    app()


def _make_working_directory_importable(context: typer.Context) -> None:
    """Let ``package.module:factory`` name code in the working directory, for the duration of the command."""
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    context.call_on_close(lambda: sys.path.remove(directory))
