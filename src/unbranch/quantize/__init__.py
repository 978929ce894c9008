"""Exact symmetries of a network that are applied before it is quantised, and a diagnosis of what quantising costs."""

from unbranch.quantize.dead_channels import DeadChannels, explain_dead_channels, zero_dead_weights
from unbranch.quantize.diagnosis import diagnose
from unbranch.quantize.equalization import Equalization, equalize, explain_equalization
from unbranch.quantize.norms import suspicious_norms
from unbranch.quantize.quantization_report import LayerDiagnosis, QuantizationReport
from unbranch.quantize.report import (
    DeadChannelsReport,
    DeadColumns,
    EqualizationReport,
    EqualizedLayer,
    SkippedScale,
    SuspiciousNorm,
)

__all__ = [
    "DeadChannels",
    "DeadChannelsReport",
    "DeadColumns",
    "Equalization",
    "EqualizationReport",
    "EqualizedLayer",
    "LayerDiagnosis",
    "QuantizationReport",
    "SkippedScale",
    "SuspiciousNorm",
    "diagnose",
    "equalize",
    "explain_dead_channels",
    "explain_equalization",
    "suspicious_norms",
    "zero_dead_weights",
]
