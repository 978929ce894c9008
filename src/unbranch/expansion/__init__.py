"""Replace the convolutions of a network by blocks with branches, keeping its function."""

from unbranch.expansion.expand import Expansion, expand, explain_expansion
from unbranch.expansion.make_block import BLOCKS
from unbranch.expansion.report import ExpansionReport
from unbranch.expansion.sites import ConvSite

__all__ = ["BLOCKS", "ConvSite", "Expansion", "ExpansionReport", "expand", "explain_expansion"]
