"""Rendering: plain values in, tables on the terminal out."""

from unbranch.display.account import Account, show_account
from unbranch.display.console import (
    console,
    cost_table,
    count,
    show_expansion,
    show_files,
    show_report,
    show_verification,
)
from unbranch.display.recipes import show_recipes
from unbranch.display.training import show_plan, show_result, training_bar
from unbranch.display.zoo import models_page, show_names, show_rows

__all__ = [
    "Account",
    "console",
    "cost_table",
    "count",
    "models_page",
    "show_account",
    "show_expansion",
    "show_files",
    "show_names",
    "show_plan",
    "show_recipes",
    "show_report",
    "show_result",
    "show_rows",
    "show_verification",
    "training_bar",
]
