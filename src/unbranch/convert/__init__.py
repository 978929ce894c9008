"""The converter: turns any network into an equivalent one with fewer layers, with a report and a proof."""

from unbranch.convert.conversion import Conversion, collapse, explain
from unbranch.convert.kernel import EquivalentKernel, equivalent_kernel
from unbranch.convert.prove.verification import Verification
from unbranch.convert.prove.verify import verify
from unbranch.convert.replay import replay_collapse
from unbranch.convert.report import MergeRecord, NetworkCost, Refusal, Report
from unbranch.rules import register_method, register_rule
from unbranch.rules.value import Affine

__all__ = [
    "Affine",
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
