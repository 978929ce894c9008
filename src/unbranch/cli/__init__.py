"""The command ``unbranch``."""

from unbranch.cli.commands import app, main

__all__ = ["app", "main"]
