"""Branches for a network that has none: blocks in place of its convolutions, its function kept."""

from unbranch.expansion.adopt import BLOCKS
from unbranch.expansion.expand import Expansion, expand

__all__ = ["BLOCKS", "Expansion", "expand"]
