"""The command ``unbranch``."""

from unbranch.cli import commands, prune, train, training, zoo  # which put themselves on the app
from unbranch.cli.app import app, main

__all__ = ["app", "commands", "main", "prune", "train", "training", "zoo"]
