"""Batch-norm statistics of a network that was never trained; the converter needs them, too."""

from unbranch.collapse.statistics import randomise_statistics

__all__ = ["randomise_statistics"]
