"""Branches for a network that has none: blocks in place of its convolutions, its function kept."""

from unbranch.expand.adopt import BLOCKS
from unbranch.expand.expand import Expansion, expand

__all__ = ["BLOCKS", "Expansion", "expand"]
