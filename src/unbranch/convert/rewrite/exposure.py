"""Check what other code can observe of a network's parts: merges must not change it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.plan.plan import Merge
from unbranch.convert.rewrite.placement import PlacementError
from unbranch.convert.source.methods import (
    calls_method_of,
    methods_iterating_over,
    methods_reaching_into,
    methods_running,
    methods_running_all,
)
from unbranch.convert.trace.trace import Call


def is_kernel(interpretation: Interpretation, node: fx.Node) -> bool:
    """Whether an operation has a kernel."""
    rule = interpretation.rule(node)
    return rule is not None and rule.kind == "linear"


def check_exposure(
    interpretation: Interpretation, merge: Merge, row: list[Call], emptied: tuple[Call, ...]
) -> list[str]:
    """Check that modules in a row can become one although other methods may run them separately.

    A kernel must not move into a part that another method runs, since the results of ``forward_intermediates`` and
    similar methods would change. A norm may (for example after a stem of several convolutions), if no method runs one
    without the other. For a part inside the network, methods count for a norm next to its kernel only if a method of an
    enclosing module calls them.

    Returns:
        Methods of the network that run a norm and the kernel before it in a loop; they must be run to compare them.

    Raises:
        PlacementError: if a method runs parts of the row separately.
    """
    for call in row:
        if (reason := exposed_inside(interpretation, call)) is not None:
            raise PlacementError(merge, reason)
    walked: list[str] = []
    calls = [*row, *emptied]
    around = common_call([c.parent for c in calls if c.parent is not None])
    parts = [next(c for c in call.lineage() if c.parent is around) for call in calls]
    moved = [call for call, part in zip(calls, parts, strict=True) if part is not parts[0]]
    kernels = any(is_kernel(interpretation, n) for call in moved for n in call.nodes)
    paths = {interpretation.trace.full_path(part.path) for part in parts}
    around_it = list(_modules_around(interpretation, around)) if moved else []
    for module, above in around_it:
        inner = {path[len(above) :].lstrip(".") for path in paths}
        shown = sorted({name for path in inner for name in methods_running(module, path)})
        if not kernels:
            every = methods_running_all(module, inner)
            shown = [name for name in shown if name not in every]
            if not above and not emptied:
                walked = sorted(methods_iterating_over(module, inner) & set(shown))
                shown = [name for name in shown if name not in walked]
        if above and not kernels and not emptied:  # a helper of the part's own forward, unless other code calls it
            outer = [(m, above[len(path) :].lstrip(".")) for m, path in around_it if len(path) < len(above)]
            shown = [name for name in shown if any(calls_method_of(m, path, name) for m, path in outer)]
        if shown:
            raise PlacementError(merge, f"{type(module).__name__}.{shown[0]} runs these parts separately")
    return walked


def exposed_inside(interpretation: Interpretation, call: Call) -> str | None:
    """Return why a call's module can't be replaced, if a method of an enclosing module runs modules inside it."""
    path = interpretation.trace.full_path(call.path)
    for module, above in list(_modules_around(interpretation, call))[1:]:
        methods = methods_reaching_into(module, path[len(above) :].lstrip("."))
        if methods:
            return f"{type(module).__name__}.{methods[0]} runs modules inside {type(call.module).__name__}"
    return None


def _modules_around(interpretation: Interpretation, call: Call) -> Iterator[tuple[nn.Module, str]]:
    """Yield a call's module and its enclosing modules, with their paths, up to the traced root."""
    steps = call.path.split(".") if call.path else []
    for n in range(len(steps), -1, -1):
        path = ".".join(steps[:n])
        yield interpretation.trace.module.get_submodule(path), interpretation.trace.full_path(path)


def common_call(calls: list[Call]) -> Call:
    """Return the innermost call that encloses all calls."""
    lines = [list(call.lineage()) for call in calls]
    return next(c for c in lines[0] if all(c in line for line in lines[1:]))
