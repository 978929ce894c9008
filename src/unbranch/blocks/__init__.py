"""Blocks that train with several branches: one paper, one file, ordinary modules."""

from unbranch.blocks.acb import ACB
from unbranch.blocks.dbb import DBB
from unbranch.blocks.repvgg import RepVGG

__all__ = ["ACB", "DBB", "RepVGG"]
