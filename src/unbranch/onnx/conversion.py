"""``collapse`` and ``explain`` for ONNX files."""

from __future__ import annotations

from typing import Any

from unbranch.convert.account import Account, sources_of
from unbranch.convert.faults import as_errors
from unbranch.convert.report import Refusal, Report
from unbranch.errors import DifferenceError, InputError
from unbranch.extras import library
from unbranch.onnx.constants import settle
from unbranch.onnx.costs import cost_of
from unbranch.onnx.files import Model, is_external, is_large, read_model, with_weights
from unbranch.onnx.planning import GraphPlan, plan_graph
from unbranch.onnx.proof import Comparison, Feeds, compare
from unbranch.onnx.protos import overridable, without_weights
from unbranch.onnx.tracing import VALUE, read_trace
from unbranch.onnx.writing import Writer
from unbranch.render import Reporting

FREEZE = "to take them for constants, use `freeze=True`, or --freeze"


class OnnxConversion(Reporting):
    """What ``collapse`` makes of an ONNX model: a report to read first, and the collapsed model.

    Attributes:
        report: merges, skipped ones with the reason, and the cost of both forms.
        comparison: of both forms in ONNX Runtime.
        external: whether the weights of the source are in other files.
    """

    def __init__(self, report: Report, model: Any, comparison: Comparison, external: bool) -> None:
        self.report, self.comparison, self.external, self._network = report, comparison, external, model

    def apply(self) -> Any:
        """Return the collapsed ``onnx.ModelProto``; a new one each time."""
        copy = type(self._network)()
        copy.CopyFrom(self._network)
        return copy


def collapse(source: Any, inputs: Feeds | None = None, *, strict: bool = False, freeze: bool = False) -> Any:
    """Return an ONNX model that computes the same function with fewer operators.

    The same as ``unbranch.collapse`` for networks of PyTorch. What isn't merged stays as it was: names and order of
    inputs and outputs, symbolic axes, opset, metadata, and operators that aren't known.

    Args:
        source: path of a file, or an ``onnx.ModelProto``, which isn't changed.
        inputs: NumPy arrays by the names of the inputs, on which both forms are compared; without them, random ones
            of two sizes.
        strict: raise if a merge was skipped because it isn't exact.
        freeze: take initialisers that are inputs as well, which a caller may replace, for constants, and remove them
            from the inputs.

    Returns:
        An ``onnx.ModelProto`` with all weights in it; ``unbranch.onnx.save`` writes it.

    Raises:
        InputError: if the model can't be read, or doesn't run on ``inputs``.
        DifferenceError: if ONNX Runtime computes another function.
        CollapseError: if ``strict`` and a merge isn't exact.
    """
    conversion = explain(source, inputs, freeze=freeze)
    if strict:
        conversion.report.require_all()
    return conversion._network


def explain(source: Any, inputs: Feeds | None = None, *, freeze: bool = False) -> OnnxConversion:
    """Return what ``collapse`` would do to an ONNX model; args and errors as there."""
    model = read_model(source, freeze=freeze)
    with as_errors():
        constants, types = settle(model)
        planned = plan_graph(read_trace(model, constants, types), constants)
        written = with_weights(Writer(model, planned).written(), model)
        library("onnx", "onnx").checker.check_model(_checkable(written), full_check=not model.doubt)
        report = _report(model, planned, written)
    comparison = compare(model, written, inputs)
    _refuse_invalid(comparison, model)
    if not comparison.same and (not comparison.problem or comparison.error > 0):
        raise DifferenceError(f"{model.name}: in ONNX Runtime, the result is {comparison.summary}")
    return OnnxConversion(report, written, comparison, is_external(model.proto))


def verify(first: Any, second: Any, inputs: Feeds | None = None) -> Comparison:
    """Compare two ONNX models in ONNX Runtime.

    Args:
        first, second: paths or ``onnx.ModelProto`` s with the same inputs and outputs.
        inputs: NumPy arrays by the names of the inputs; without them, random ones of two sizes.

    Returns:
        The comparison: ``same``, ``error`` and ``noise``, and a sentence as ``str``.

    Raises:
        InputError: if a model can't be read, or they have other inputs or outputs.
    """
    models = [read_model(source) for source in (first, second)]
    for kind in ("input", "output"):
        names = [[v.name for v in getattr(model.proto.graph, kind)] for model in models]
        if names[0] != names[1]:
            raise InputError(f"{models[0].name} has the {kind}s {names[0]}, {models[1].name} has {names[1]}")
    comparison = compare(models[0], with_weights(models[1].proto, models[1]), inputs)
    _refuse_invalid(comparison, *models)
    if comparison.problem and comparison.error > 0:
        raise InputError(f"{models[1].name}: {comparison.problem}")
    return comparison


def _refuse_invalid(comparison: Comparison, *models: Model) -> None:
    """Raise InputError for a model that neither ONNX Runtime nor a strict check accepts."""
    for model in models:
        if comparison.problem and model.doubt:
            raise InputError(f"{model.name} isn't a valid ONNX model: {model.doubt}")


def _checkable(proto: Any) -> Any:
    return without_weights(proto) if is_large(proto) else proto


def _report(model: Model, planned: GraphPlan, written: Any) -> Report:
    account, interpretation = Account(), planned.interpretation
    for merge in planned.plan.merges:
        built = planned.built[merge]
        place = str(merge.target.meta.get(VALUE, merge.target.name))
        account.merge(place, sources_of(interpretation, merge), built.layer, built.error)
    for sources, (reason, node) in planned.rejected.items():
        account.refuse(sources, reason, node)
    if defaults := overridable(model.proto):
        reason = f"{len(defaults)} weights are inputs of the model as well, so a caller may replace them"
        account.refused.append(((), Refusal("", reason, remedy=FREEZE)))
    gone = {node for merge in planned.plan.merges for node in merge.inside}
    account.norms_of(planned.trace, gone)
    merges = tuple(record for record, _ in account.merged)
    return Report(
        model.name, merges, tuple(r for _, r in account.refused), tuple(account.kept), cost_of(model.proto),
        cost_of(written), (), tuple(account.norms),
    )  # fmt: skip
