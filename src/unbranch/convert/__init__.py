"""The converter: any network in, an equal and plainer network out, with a report and a proof."""

from unbranch.convert.conversion import Conversion, collapse, explain
from unbranch.convert.kernel import EquivalentKernel, equivalent_kernel
from unbranch.convert.replay import replay_collapse
from unbranch.convert.report import MergeRecord, NetworkCost, Refusal, Report
from unbranch.convert.verify import Verification, verify
from unbranch.rules import register_method, register_rule
from unbranch.rules.value import Affine, Bundle

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
    "equivalent_kernel",
    "explain",
    "register_method",
    "register_rule",
    "replay_collapse",
    "verify",
]
