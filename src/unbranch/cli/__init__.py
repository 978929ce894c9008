"""The command ``unbranch``."""

from unbranch.cli import commands, train, training, zoo  # which put themselves on the app
from unbranch.cli.app import app, main

__all__ = ["app", "commands", "main", "train", "training", "zoo"]
