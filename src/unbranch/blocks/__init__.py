"""Blocks that train with several branches: one paper, one file, ordinary modules."""

from unbranch.blocks.acb import ACB
from unbranch.blocks.branched import BranchedConv, BranchOptions, initialise
from unbranch.blocks.compactor import Compactor
from unbranch.blocks.dbb import DBB
from unbranch.blocks.mixed import BRANCHES, Mixed
from unbranch.blocks.parts import DropPath, SqueezeExcite
from unbranch.blocks.repghost import RepGhostBottleneck, RepGhostModule, make_divisible
from unbranch.blocks.replk import ConvFFN, LargeKernel, RepLKBlock
from unbranch.blocks.repmlp import FFN, RepMLP, RepMLPUnit, WindowPerceptron
from unbranch.blocks.repvgg import RepVGG, custom_l2
from unbranch.blocks.spec import ConvSpec

__all__ = [
    "ACB",
    "BRANCHES",
    "DBB",
    "FFN",
    "BranchOptions",
    "BranchedConv",
    "Compactor",
    "ConvFFN",
    "ConvSpec",
    "DropPath",
    "LargeKernel",
    "Mixed",
    "RepGhostBottleneck",
    "RepGhostModule",
    "RepLKBlock",
    "RepMLP",
    "RepMLPUnit",
    "RepVGG",
    "SqueezeExcite",
    "WindowPerceptron",
    "custom_l2",
    "initialise",
    "make_divisible",
]
