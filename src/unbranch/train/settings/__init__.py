"""The settings of a recipe: one frozen dataclass for each section.

Lengths are in epochs and sizes in pixels; the batch size is that of all processes together.
"""

from unbranch.train.settings.images import Augment, DataSettings, Evaluate
from unbranch.train.settings.learning import Ema, Loss, Optimizer, Rule, Schedule, Training
from unbranch.train.settings.network import REQUIRED, BlockSettings, Expand, Model
from unbranch.train.settings.pruning import Prune

__all__ = [
    "REQUIRED",
    "Augment",
    "BlockSettings",
    "DataSettings",
    "Ema",
    "Evaluate",
    "Expand",
    "Loss",
    "Model",
    "Optimizer",
    "Prune",
    "Rule",
    "Schedule",
    "Training",
]
