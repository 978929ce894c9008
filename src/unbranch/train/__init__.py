"""Training: data, recipes, and runs that end with a collapsed network.

Raises:
    MissingPackageError: on import, if the extra ``train`` isn't installed.
"""

from unbranch.deprecation import renamed_names
from unbranch.errors import TrainingInterrupted
from unbranch.train.data import Data, open_data
from unbranch.train.engine import fit, train
from unbranch.train.plan import TrainingPlan, make_plan
from unbranch.train.progress import Log, OnProgress, TrainingProgress
from unbranch.train.recipe import Recipe, list_recipes, load_recipe, to_yaml
from unbranch.train.result import TrainingResult

__all__ = [
    "Data",
    "Log",
    "OnProgress",
    "Recipe",
    "TrainingInterrupted",
    "TrainingPlan",
    "TrainingProgress",
    "TrainingResult",
    "fit",
    "list_recipes",
    "load_recipe",
    "make_plan",
    "open_data",
    "to_yaml",
    "train",
]

__getattr__ = renamed_names(
    __name__,
    {
        "Moment": "TrainingProgress",
        "Plan": "TrainingPlan",
        "Result": "TrainingResult",
        "Stopped": "TrainingInterrupted",
        "Watch": "OnProgress",
    },
)
