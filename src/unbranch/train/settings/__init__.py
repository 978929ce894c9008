"""What a recipe says, as values: one frozen dataclass a section, every number within its bounds.

Lengths are in epochs, sizes in pixels, the batch is that of all processes together.
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
