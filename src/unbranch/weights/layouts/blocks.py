"""Names of parameters in the published code of the blocks, and ours.

``merged`` is our name for the layer that a block collapses to, where the published code writes one.
"""

from __future__ import annotations

from unbranch.weights.layouts.tables import Table, under

ACB: Table = (
    ("square_conv.", "square.conv."),
    ("square_bn.", "square.bn."),
    ("ver_conv.", "vertical.conv."),
    ("ver_bn.", "vertical.bn."),
    ("hor_conv.", "horizontal.conv."),
    ("hor_bn.", "horizontal.bn."),
    ("fused_conv.", "merged."),
)
DBB: Table = (
    ("dbb_origin.", "conv_kxk."),
    ("dbb_1x1_kxk.idconv1.", "conv_1x1_kxk.identity_1x1."),
    ("dbb_1x1_kxk.conv1.", "conv_1x1_kxk.conv_1x1."),
    ("dbb_1x1_kxk.bn1.", "conv_1x1_kxk.border_bn."),
    ("dbb_1x1_kxk.conv2.", "conv_1x1_kxk.conv_kxk."),
    ("dbb_1x1_kxk.bn2.", "conv_1x1_kxk.bn."),
    ("dbb_1x1.", "conv_1x1."),
    ("dbb_avg.conv.", "average.conv_1x1."),
    ("dbb_avg.bn.", "average.border_bn."),
    ("dbb_avg.avgbn.", "average.bn."),
    ("dbb_reparam.", "merged."),
)
REPVGG: Table = (
    ("rbr_identity.", "identity.bn."),
    ("rbr_dense.", "conv_kxk."),
    ("rbr_1x1.", "conv_1x1."),
    ("rbr_reparam.", "merged."),
)
REPMLP: Table = (
    ("gp.fc1.", "gate.down."),
    ("gp.fc2.", "gate.up."),
    ("fc3.", "perceptron.fc."),
    ("fc3_bn.", "perceptron.fc_bn."),
    ("repconv", "perceptron.conv"),  # and the size of the kernel
)
FFN: Table = (("ffn_fc1.", "fc1."), ("ffn_fc2.", "fc2."))
LARGE_KERNEL: Table = (("lkb_origin.", "large."), ("small_conv.", "small."), ("lkb_reparam.", "merged."))
POINTWISE: Table = (("pw1.", "pw1."), ("pw2.", "pw2."))
REPGHOST: Table = (
    ("primary_conv.0.", "primary.conv."),
    ("primary_conv.1.", "primary.bn."),
    ("fusion_bn.0.", "cheap.identity.bn."),
    ("cheap_operation.0.", "cheap.kxk.conv."),
    ("cheap_operation.1.", "cheap.kxk.bn."),
    ("cheap_operation.", "cheap.merged."),
)
# The younger ones. Apple's names of MobileOne, and timm's.
MOBILEONE: Table = (
    ("rbr_conv.*.", "conv_kxk_*."),
    ("rbr_scale.", "conv_scale."),
    ("rbr_skip.", "identity.bn."),
    ("se.reduce.", "post.0.down."),
    ("se.expand.", "post.0.up."),
    ("reparam_conv.", "merged."),
)
MOBILEONE_TIMM: Table = (
    ("conv_kxk.*.", "conv_kxk_*."),
    ("conv_scale.", "conv_scale."),
    ("identity.", "identity.bn."),
    ("attn.fc1.", "post.0.down."),
    ("attn.fc2.", "post.0.up."),
    ("reparam_conv.", "merged."),
)
QAREPVGG: Table = (
    ("rbr_dense.", "conv_kxk."),
    ("rbr_1x1.", "conv_1x1.conv."),
    ("bn.", "closing."),
    ("rbr_reparam.", "merged."),
)
DILATED: Table = (
    ("lk_origin.", "large.conv."),
    ("origin_bn.", "large.bn."),
    ("dil_conv_k*.", "small_*.conv."),
    ("dil_bn_k*.", "small_*.bn."),
)
UNIREPLKNET_BLOCK: Table = (
    *under("dwconv", "depthwise", DILATED),
    ("dwconv.", "depthwise."),  # a small kernel, which has no branches
    ("norm.", "norm."),
    ("se.", "se."),
    ("pwconv1.1.", "pw1."),
    ("act.1.", "grn."),
    ("pwconv2.0.", "pw2.conv."),
    ("pwconv2.2.", "pw2.bn."),
    ("gamma", "gamma"),
)

OFFICIAL_KEYS: dict[str, Table] = {
    "ACBlock": ACB,
    "DiverseBranchBlock": DBB,
    "RepVGGBlock": (*REPVGG, ("se.", "post.0.")),
    "RepVGGplusBlock": (*REPVGG, ("post_se.", "post.1.")),
    "RepMLPBlock": REPMLP,
    "FFNBlock": FFN,
    "RepMLPNetUnit": (
        *under("repmlp_block", "block", REPMLP),
        *under("ffn_block", "ffn", FFN),
        ("prebn1.", "norm1."),
        ("prebn2.", "norm2."),
    ),
    "ReparamLargeKernelConv": LARGE_KERNEL,
    "RepLKBlock": (*POINTWISE, *under("large_kernel", "large_kernel", LARGE_KERNEL), ("prelkb_bn.", "norm.")),
    "ConvFFN": (("preffn_bn.", "norm."), *POINTWISE),
    "RepGhostModule": REPGHOST,
    "RepGhostBottleneck": (
        *under("ghost1", "ghost1", REPGHOST),
        ("conv_dw.", "depthwise.conv."),
        ("bn_dw.", "depthwise.bn."),
        ("se.conv_reduce.", "se.down."),
        ("se.conv_expand.", "se.up."),
        *under("ghost2", "ghost2", REPGHOST),
        ("shortcut.0.", "shortcut.depthwise.conv."),
        ("shortcut.1.", "shortcut.depthwise.bn."),
        ("shortcut.2.", "shortcut.pointwise.conv."),
        ("shortcut.3.", "shortcut.pointwise.bn."),
    ),
    "Compactor": (("pwc.", "conv."), ("mask", "mask")),
}
"""By the name of the class in the published code (for the compactor, ours)."""
