"""Converting a network: what is found, and the network that it gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unbranch.convert.attempt import Attempt
from unbranch.convert.building import Built
from unbranch.convert.faults import Fault, as_errors, warn_of
from unbranch.convert.forwards import Forwards, sizes_of
from unbranch.convert.provenance import record_collapse
from unbranch.convert.report import Report
from unbranch.convert.verify import as_inputs
from unbranch.errors import CollapseError, UnsupportedError
from unbranch.graph.outside import restore_outside
from unbranch.graph.shadow import deep_copied, unwrapped
from unbranch.graph.untouched import leaves_no_trace


class Conversion:
    """What ``collapse`` makes of a network, to be looked at first: merges, reasons and costs.

    Made by ``explain``. A proof has to run what it proves, so the value holds the converted network; ``apply`` gives
    it. What the report offers can be read from here, too.

    Attributes:
        report: merges, what stays and why, and the cost of both forms.

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
        """The converted network, of the weights that the model had when it was explained; a new one each time."""
        return deep_copied(self._network, {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.report, name)

    def __str__(self) -> str:
        return str(self.report)

    def __repr__(self) -> str:
        return f"<Conversion of {self.report.network}: {len(self.report.merges)} merges>"


def collapse(model: nn.Module, example_input: Any = None, *, strict: bool = False) -> nn.Module:
    """A new, plain network that computes the same function as ``model`` in evaluation, with fewer layers.

    Parallel and sequential linear operations are merged wherever that is exact and saves work; ``model`` isn't
    changed. Classes and paths outside the rewritten modules stay, as do mode, device, dtype, memory format and
    ``requires_grad``. ``DistributedDataParallel``, averaging and compiling wrappers are taken off, and so is what a
    class declares as ``training_only``.

    Args:
        model: any module, in training or evaluation mode.
        example_input: a tensor, or a tuple of the forward's arguments. With it the whole network is checked
            too, and the report counts multiply-accumulates and launches.
        strict: raise if anything had to be refused.

    Returns:
        The network, with its ``Report`` as ``collapse_report``.

    Raises:
        InputError: if ``model`` isn't a module that can be read, or the network doesn't run on the example.
        CollapseError: if strict and something was refused, or if the result as a whole differs.

    Example:
        >>> import torch, unbranch as ub
        >>> from unbranch.blocks import RepVGG
        >>> block = RepVGG(8, 8, 3, padding=1).eval()
        >>> ub.collapse(block)
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    return _converted(model, example_input, strict)._network


def explain(model: nn.Module, example_input: Any = None) -> Conversion:
    """What ``collapse`` would do to a network: the same analysis and proofs.

    Args and errors as for ``collapse``; never strict.

    Returns:
        The conversion: its ``report``, which prints as a table, and ``apply()``, which gives the network.
    """
    return _converted(model, example_input)


def _converted(model: nn.Module, example_input: Any, strict: bool = False) -> Conversion:
    network = _readable(model)
    inputs = None if example_input is None else as_inputs(example_input)
    with as_errors(), leaves_no_trace(network):
        attempt, plain = _proved(network, inputs)
        report = attempt.report(plain, inputs)
        if strict and report.refusals:
            listed = "\n".join(f"  {r.path or '(the network)'}: {r.reason}" for r in report.refusals)
            raise CollapseError(f"{len(report.refusals)} things can't be merged exactly:\n{listed}")
        vars(plain)["collapse_report"] = report  # deprecated; whatever its class does with attributes
        record_collapse(network, plain, report, inputs)
        return Conversion(report, plain)


def _readable(model: nn.Module) -> nn.Module:
    network = unwrapped(model)
    if isinstance(network, torch.jit.ScriptModule):
        raise UnsupportedError(
            f"{type(network).__name__} is a ScriptModule: collapse the network before it is scripted"
        )
    return network


def _proved(network: nn.Module, inputs: tuple[Any, ...] | None) -> tuple[Attempt, nn.Module]:
    """An attempt whose rewritten parts agree with the original's own forwards, and the network that it gives.

    Where a part doesn't agree, what was rewritten in it is excluded and the network converted again.
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
