"""The converter: any network in, an equal and plainer network out, with a report and a proof."""

from ..rules import register_method, register_rule
from ..rules.value import Affine, Bundle
from .conversion import Conversion, collapse, explain
from .kernel import EquivalentKernel, equivalent_kernel
from .replay import collapsed_again
from .report import MergeRecord, NetworkCost, Refusal, Report
from .verify import Verification, verify

__all__ = [
    "Affine",
    "Bundle",
    "Conversion",
    "EquivalentKernel",
    "MergeRecord",
    "NetworkCost",
    "Refusal",
    "Report",
    "Verification",
    "collapse",
    "collapsed_again",
    "equivalent_kernel",
    "explain",
    "register_method",
    "register_rule",
    "verify",
]
