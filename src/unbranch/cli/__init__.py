"""The command line."""

from unbranch.cli import commands, demo, deploy, models, prune, recipes, train  # each registers its commands on the app
from unbranch.cli.app import app, main

__all__ = ["app", "commands", "demo", "deploy", "main", "models", "prune", "recipes", "train"]
