"""Recipes as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from unbranch.train.recipe import Listed


def show_recipes(recipes: Iterable[Listed]) -> Table:
    """Names with what each is for and where it is published."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in ("recipe", "for", "source"):
        table.add_column(header)
    for recipe in recipes:
        table.add_row(recipe.name, recipe.about, recipe.source)
    return table
