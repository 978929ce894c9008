"""Training: images, and the loop."""

from unbranch.train.data import Images, load
from unbranch.train.loop import Recipe, Step, accuracy, fit, predict

__all__ = ["Images", "Recipe", "Step", "accuracy", "fit", "load", "predict"]
