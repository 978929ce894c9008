"""Names of parameters in published code, and ours: tables for blocks and for whole networks, one file a family."""

from unbranch.weights.layouts.blocks import OFFICIAL_KEYS
from unbranch.weights.layouts.layout import Layout
from unbranch.weights.layouts.networks import layouts_of
from unbranch.weights.layouts.tables import Table, renamed, same, to_official, to_ours, under

__all__ = ["OFFICIAL_KEYS", "Layout", "Table", "layouts_of", "renamed", "same", "to_official", "to_ours", "under"]
