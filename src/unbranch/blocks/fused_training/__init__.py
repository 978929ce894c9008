"""Branches that are computed together in training: the same outputs and gradients from fewer convolutions."""

from unbranch.blocks.fused_training.branches import fused_sum

__all__ = ["fused_sum"]
