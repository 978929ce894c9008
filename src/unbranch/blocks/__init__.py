"""Blocks that train with several branches, one file per paper."""

from unbranch.blocks.acb import ACB
from unbranch.blocks.branched import BranchedConv, BranchOptions, initialise
from unbranch.blocks.compactor import Compactor
from unbranch.blocks.dbb import DBB
from unbranch.blocks.dilated import GRN, ChannelNorm, DilatedReparam, UniRepLKNetBlock
from unbranch.blocks.fuse import fuse_branches_in_training
from unbranch.blocks.fuse import train_cheaper as train_cheaper  # deprecated
from unbranch.blocks.mixed import BRANCHES, Mixed
from unbranch.blocks.mobileone import MobileOne
from unbranch.blocks.orepa import OREPA
from unbranch.blocks.parts import DropPath, SqueezeExcite
from unbranch.blocks.qarepvgg import QARepVGG
from unbranch.blocks.repghost import RepGhostBottleneck, RepGhostModule, make_divisible
from unbranch.blocks.replk import ConvFFN, LargeKernel, RepLKBlock
from unbranch.blocks.repmixer import LayerScale, RepMixer, RepMixerBlock
from unbranch.blocks.repmlp import FFN, RepMLP, RepMLPUnit, WindowPerceptron
from unbranch.blocks.repvgg import RepVGG, custom_l2
from unbranch.blocks.repvit import RepVGGDW, RepViTBlock
from unbranch.blocks.spec import ConvSpec

CONVOLUTIONS: dict[str, type[BranchedConv]] = {
    "acb": ACB,
    "dbb": DBB,
    "repvgg": RepVGG,
    "replk": LargeKernel,
    "mobileone": MobileOne,
    "qarepvgg": QARepVGG,
    "dilated": DilatedReparam,
    "orepa": OREPA,
}
"""Blocks that replace a convolution, by name."""

__all__ = [
    "ACB",
    "BRANCHES",
    "CONVOLUTIONS",
    "DBB",
    "FFN",
    "GRN",
    "OREPA",
    "BranchOptions",
    "BranchedConv",
    "ChannelNorm",
    "Compactor",
    "ConvFFN",
    "ConvSpec",
    "DilatedReparam",
    "DropPath",
    "LargeKernel",
    "LayerScale",
    "Mixed",
    "MobileOne",
    "QARepVGG",
    "RepGhostBottleneck",
    "RepGhostModule",
    "RepLKBlock",
    "RepMLP",
    "RepMLPUnit",
    "RepMixer",
    "RepMixerBlock",
    "RepVGG",
    "RepVGGDW",
    "RepViTBlock",
    "SqueezeExcite",
    "UniRepLKNetBlock",
    "WindowPerceptron",
    "custom_l2",
    "fuse_branches_in_training",
    "initialise",
    "make_divisible",
]
