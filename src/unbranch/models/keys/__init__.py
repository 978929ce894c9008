"""Names of parameters in the published code, and ours: tables, for blocks and for whole networks."""

from unbranch.models.keys.blocks import OFFICIAL_KEYS
from unbranch.models.keys.networks import Layout, layouts_of
from unbranch.models.keys.tables import Table, renamed, same, to_official, to_ours, under

__all__ = ["OFFICIAL_KEYS", "Layout", "Table", "layouts_of", "renamed", "same", "to_official", "to_ours", "under"]
