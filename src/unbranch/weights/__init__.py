"""Weights: files of any origin, their layouts, and the models that they go into.

read ──► strip ──► match ──► adapt ──► fill
file     tensors   layout    names     model
"""

from unbranch.weights.manifest import Manifest, read_manifest
from unbranch.weights.official import to_official
from unbranch.weights.pipeline import LoadResult, load_checkpoint
from unbranch.weights.saved import is_self_describing, load, load_weights, save
from unbranch.weights.strip import read_weights

__all__ = [
    "LoadResult",
    "Manifest",
    "is_self_describing",
    "load",
    "load_checkpoint",
    "load_weights",
    "read_manifest",
    "read_weights",
    "save",
    "to_official",
]
