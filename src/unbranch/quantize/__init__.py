"""Exact symmetries of a network that are applied before it is quantised, and a diagnosis of what quantising costs."""

from unbranch.quantize.equalization import Equalization, equalize, explain_equalization
from unbranch.quantize.report import EqualizationReport, EqualizedLayer, SkippedScale

__all__ = [
    "Equalization",
    "EqualizationReport",
    "EqualizedLayer",
    "SkippedScale",
    "equalize",
    "explain_equalization",
]
