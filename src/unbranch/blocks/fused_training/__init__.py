"""The sum of branches in training, computed with fewer convolutions."""

from unbranch.blocks.fused_training.branches import fused_sum

__all__ = ["fused_sum"]
