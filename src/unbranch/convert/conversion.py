"""``collapse`` and ``explain``: the conversion of a network as a value."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unbranch.convert.attempt import Attempt
from unbranch.convert.faults import Fault, as_errors, warn_of
from unbranch.convert.formats import format_of
from unbranch.convert.prove.forwards import Forwards
from unbranch.convert.prove.inputs import as_inputs, sizes_of
from unbranch.convert.prove.merged_layers import Built
from unbranch.convert.provenance import record_collapse
from unbranch.convert.report import Report
from unbranch.errors import UnsupportedError
from unbranch.graph.eval_view import deep_copied, unwrap_model
from unbranch.graph.global_state import without_side_effects
from unbranch.graph.outside import restore_outside
from unbranch.large_kernels import accelerate_large_kernels
from unbranch.render import Reporting


class Conversion(Reporting):
    """What ``collapse`` makes of a network: a report to read first, and the collapsed network.

    Made by ``explain``. A conversion is proved by running it, so the value holds the collapsed network. Attributes of
    the report can be read from it directly.

    Attributes:
        report: merges, skipped ones with the reason, and the cost of both forms.

    Example:
        >>> import unbranch as ub
        >>> from unbranch.blocks import RepVGG
        >>> conversion = ub.explain(RepVGG(8, 8, 3, padding=1).eval())
        >>> len(conversion.merges)
        1
        >>> conversion.apply()
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    def __init__(self, report: Report, network: nn.Module) -> None:
        self.report, self._network = report, network

    def apply(self) -> nn.Module:
        """Return the collapsed network, with the weights of the time of the analysis; a new one each time."""
        return deep_copied(self._network, {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.report, name)


def collapse(model: nn.Module, example_input: Any = None, *, strict: bool = False) -> nn.Module:
    """Return a new, plain network that computes the same function as ``model`` in evaluation, with fewer layers.

    Parallel and sequential linear operations are merged wherever that is exact and saves work; ``model`` isn't
    changed. The result is what ``explain(model, example_input).apply()`` returns. Classes and paths outside the
    rewritten modules are kept, as are mode, device, dtype, memory format and ``requires_grad``.
    ``DistributedDataParallel``, averaging and compiling wrappers are removed, and so is what a class declares as
    ``training_only``.

    Args:
        model: any module, in training or evaluation mode; or an ONNX file, see ``unbranch.onnx.collapse``.
        example_input: a tensor, or a tuple of the forward's arguments. With it the network as a whole is checked,
            too, and the report counts multiply-accumulates and launches.
        strict: raise if a merge was skipped because it isn't exact.

    Returns:
        The network; ``unbranch.report`` reads its ``Report``.

    Raises:
        InputError: if ``model`` isn't a module that can be read, or doesn't run on ``example_input``.
        CollapseError: if ``strict`` and a merge isn't exact, or if the result as a whole differs.

    Example:
        >>> import torch, unbranch as ub
        >>> from unbranch.blocks import RepVGG
        >>> block = RepVGG(8, 8, 3, padding=1).eval()
        >>> ub.collapse(block)
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    conversion = explain(model, example_input)
    if strict:
        conversion.report.require_all()
    return conversion._network


def explain(model: nn.Module, example_input: Any = None) -> Conversion:
    """Return what ``collapse`` would do to a network: the same analysis and proofs.

    Args and errors as for ``collapse``.

    Returns:
        The conversion: its ``report``, which prints as a table, and ``apply()``, which returns the network.
    """
    if (other := format_of(model)) is not None:
        return other.explain(model, example_input)  # type: ignore[no-any-return]
    network = _readable(model)
    inputs = None if example_input is None else as_inputs(example_input)
    with as_errors(), without_side_effects(network):
        attempt, plain = _proved(network, inputs)
        report = attempt.report(plain, inputs)
        vars(plain)["collapse_report"] = report  # deprecated; whatever its class does with attributes
        record_collapse(network, plain, report, inputs)
        return Conversion(report, accelerate_large_kernels(plain))


def _readable(model: nn.Module) -> nn.Module:
    network = unwrap_model(model)
    if isinstance(network, torch.jit.ScriptModule):
        raise UnsupportedError(
            f"{type(network).__name__} is a ScriptModule: collapse the network before it is scripted"
        )
    return network


def _proved(network: nn.Module, inputs: tuple[Any, ...] | None) -> tuple[Attempt, nn.Module]:
    """Return an attempt whose rewritten parts agree with the original's own forwards, and its network.

    Where a part doesn't agree, its rewrites are excluded and the network is converted again.
    """
    excluded: dict[tuple[str, str, str], str] = {}
    built: dict[Any, Built] = {}
    forwards = None if _is_meta(network) else Forwards(network, inputs)
    pair = forwards.pair if forwards is not None else sizes_of(network)
    faulty: dict[str, str] = {}
    while True:
        attempt = Attempt(network, pair, excluded=excluded, built=built, faulty=faulty)
        try:
            attempt.run()
        except Fault as fault:
            if fault.path in faulty:
                raise
            warn_of(fault)
            faulty[fault.path] = fault.reason
            continue
        finally:
            restore_outside()  # of stand-ins, which real runs can't use
        plain = attempt.result()
        if forwards is None or not attempt.units:
            attempt.round()
            return attempt, plain
        wrong = attempt.disproved(plain, forwards)
        if not wrong:
            attempt.round()
            reason = forwards.agrees(plain)
            if reason is None:
                return attempt, plain
            wrong = {merge: reason for merges in attempt.units.values() for merge in merges}
            built.clear()
        excluded |= wrong


def _is_meta(network: nn.Module) -> bool:
    return any(t.is_meta for t in (*network.parameters(), *network.buffers()))
