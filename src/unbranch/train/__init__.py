"""Training: data, recipes, the run."""

from unbranch.errors import Stopped
from unbranch.train.data import Data, open_data
from unbranch.train.engine import Moment, Watch, train
from unbranch.train.finish import Result
from unbranch.train.plan import Plan, make_plan
from unbranch.train.recipe import Recipe, list_recipes, load_recipe, to_yaml

__all__ = [
    "Data",
    "Moment",
    "Plan",
    "Recipe",
    "Result",
    "Stopped",
    "Watch",
    "list_recipes",
    "load_recipe",
    "make_plan",
    "open_data",
    "to_yaml",
    "train",
]
