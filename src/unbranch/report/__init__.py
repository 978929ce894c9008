"""Rendering: plain values in, tables on the terminal out."""

from unbranch.report.account import Account, Equality, show_account
from unbranch.report.console import (
    console,
    cost_table,
    count,
    progress_bar,
    show_expansion,
    show_files,
    show_report,
    show_verification,
)
from unbranch.report.recipes import show_recipes
from unbranch.report.zoo import models_page, show_names, show_rows

__all__ = [
    "Account",
    "Equality",
    "console",
    "cost_table",
    "count",
    "models_page",
    "progress_bar",
    "show_account",
    "show_expansion",
    "show_files",
    "show_names",
    "show_recipes",
    "show_report",
    "show_rows",
    "show_verification",
]
