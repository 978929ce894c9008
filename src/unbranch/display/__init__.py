"""The terminal: consoles, progress bars, and the catalogue of networks as a table and a page.

Results render themselves, see ``unbranch.render``.
"""

from unbranch.display.console import console
from unbranch.display.models import catalogue_table, models_page, names_table
from unbranch.display.steps import steps_bar
from unbranch.display.training import training_bar

__all__ = ["catalogue_table", "console", "models_page", "names_table", "steps_bar", "training_bar"]
