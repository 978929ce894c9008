"""Rules of layers of other libraries, by qualified name, without importing the libraries."""

from __future__ import annotations

from unbranch.rules.layers import batch_norm
from unbranch.rules.registry import register_rule

# A batch norm whose statistics and affine parameters are buffers.
register_rule(
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "detectron2.layers.batch_norm.FrozenBatchNorm2d",
    layer_input=lambda m: (len(m.weight), 2, 1),
    arranged=True,
)(batch_norm)

# timm: a batch norm, then dropout and activation.
register_rule(
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
    layer_input=lambda m: (m.num_features, 2, 1),
    epilogue=("drop", "act"),
    arranged=True,
)(batch_norm)
