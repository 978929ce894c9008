"""The proof of a conversion: rewritten parts against the original parts' own forwards, run by PyTorch.

A merge that was made from a misread forward agrees with the reading, so the reading proves nothing. Here the
original's forward and the rewritten part's run in float64 on the same arguments: those that its callers pass, with
noise in their tensors. What they return, what they write into their arguments, and what they leave in attributes and
buffers has to be the same.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.float64 import Float64
from ..graph.guarded import Observation, RandomDrawError, observe
from ..graph.probe import Arguments, calls_inside, probe
from ..rules import rule_of_module
from .prove import relative_error

_CAP = 1e-3  # of the largest output: what rounding merged weights to the network's dtype may cost, at most


def expected_input(module: nn.Module) -> tuple[int, int, bool] | None:
    """Channels and rank of a layer's input, where it has a rule that knows."""
    rule = rule_of_module(module)
    if rule is None or rule.channels is None:
        return None
    try:
        return rule.channels(module)
    except Exception:  # a lazy layer, or a rule of the user's that doesn't fit
        return None


@dataclass(eq=False)
class Forwards:
    """The original network's parts and the arguments to try them on.

    Args:
        network: the original.
        given: its inputs, as far as they are known.
        stateful: why the whole network can't be compared, if so.
    """

    network: nn.Module
    example: tuple[Any, ...] | None = None
    given: list[Arguments] = field(default_factory=list)
    _calls: dict[str, list[Arguments]] = field(default_factory=dict)
    _reasons: dict[str, str] = field(default_factory=dict)
    _dtypes: dict[tuple[str, int], list[torch.dtype] | None] = field(default_factory=dict)
    _observed: dict[tuple[str, int], tuple[Observation, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.example is not None:
            self.given = [Arguments(self.example)]
            return
        with contextlib.suppress(RandomDrawError):
            self.given = probe(self.network, expected_input)

    def learn(self, paths: set[str]) -> None:
        """Find arguments for the parts at ``paths`` that have none yet."""
        missing = {p for p in paths if p and p not in self._calls}
        for given in self.given[:1] if missing else ():
            self._calls |= calls_inside(self.network, given, missing)
        for path in missing - set(self._calls):
            try:
                self._calls[path] = probe(self.network.get_submodule(path), expected_input)
            except RandomDrawError:
                self._calls[path] = []
                self._reasons[path] = "it draws random numbers in evaluation"
        self._calls.setdefault("", self.given)

    def known(self, path: str) -> bool:
        """Whether there are arguments for a part."""
        return bool(self._calls.get(path))

    def difference(self, path: str, rewritten: nn.Module) -> str | None:
        """Why a rewritten part isn't the original part at ``path``; None if nothing tells them apart."""
        original = self.network.get_submodule(path)
        for j, given in enumerate(self._calls.get(path, ())):
            try:
                known = self._observed.get((path, j))
                if known is None:
                    known, self._dtypes[path, j] = self._original(
                        original, given, thorough=not path or (j == 0 and not self.given)
                    )
                    self._observed[path, j] = known
                theirs, tolerance = known
            except RandomDrawError:
                return "it draws random numbers in evaluation"
            except _UnstableError as error:
                return str(error)
            except Exception:  # noise of a captured shape isn't an input that it takes
                continue
            try:
                dtypes = self._dtypes[path, j]
                if dtypes is not None:
                    (native,) = observe(rewritten, given.args, given.kwargs, contextlib.nullcontext)
                    if [t.dtype for t in native.outputs] != dtypes:
                        return "its output would have another dtype"
                (ours,) = observe(rewritten, given.args, given.kwargs, Float64)
            except Exception as error:
                return f"the rewritten part can't be run ({type(error).__name__}: {_first_line(error)})"
            reason = _unlike(ours, theirs, tolerance)
            if reason is not None:
                return reason
        return None

    def _original(
        self, original: nn.Module, given: Arguments, *, thorough: bool
    ) -> tuple[tuple[Observation, float], list[torch.dtype] | None]:
        """The original's results in float64 with what may differ from them, and the dtypes that it returns.

        What a part inside a network returns is compared once, the whole is run twice and in its own precision, too.
        """
        dtypes = [t.dtype for t in original.parameters() if t.is_floating_point()]
        eps = max((torch.finfo(d).eps for d in dtypes), default=torch.finfo(torch.float64).eps)
        tolerance = 1e-9 if eps < 1e-10 else 64 * eps
        if not thorough and eps < 1e-5:
            (exact,) = observe(original, given.args, given.kwargs, Float64)
            return (exact, tolerance if eps < 1e-10 else _CAP / 10), None
        first, second = observe(original, given.args, given.kwargs, contextlib.nullcontext, times=2)
        if _unlike(second, first, 0.0, changes=False) is not None:
            raise _UnstableError("its output differs between two runs on one input")
        (exact,) = observe(original, given.args, given.kwargs, Float64)
        noise = max((relative_error(a, b) for a, b in zip(first.outputs, exact.outputs, strict=False)), default=0.0)
        if eps >= 1e-10:
            tolerance = max(tolerance, min(8 * noise, _CAP))
        return (exact, tolerance), [t.dtype for t in first.outputs]


class _UnstableError(Exception):
    """A part that gives two results for one input."""


def _unlike(ours: Observation, theirs: Observation, tolerance: float, *, changes: bool = True) -> str | None:
    """How an observation differs from the original's."""
    if ours.structure != theirs.structure or len(ours.outputs) != len(theirs.outputs):
        return "its outputs would have another structure"
    for a, b in zip(ours.outputs, theirs.outputs, strict=True):
        if a.shape != b.shape:
            return f"its output would have the shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        if a.dtype != b.dtype:
            return f"its output would be {a.dtype} instead of {b.dtype}"
        reason = _values(a, b, tolerance)
        if reason is not None:
            return reason
    if not changes:
        return None
    for key in ours.changes.keys() | theirs.changes.keys():
        name = ".".join(filter(None, key))
        if key not in ours.changes:
            return f"it would no longer update {name}"
        if key not in theirs.changes:
            return f"it would update {name}, which the original doesn't"
        a, b = ours.changes[key], theirs.changes[key]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            reason = _values(a, b, tolerance)
            if reason is not None:
                return f"what it keeps in {name} would differ"
    return None


def _values(a: Tensor, b: Tensor, tolerance: float) -> str | None:
    if a.is_meta or b.is_meta or not b.numel():
        return None
    if not (b.is_floating_point() or b.is_complex()):
        return None if a.shape == b.shape and torch.equal(a, b) else "its integer outputs would differ"
    if torch.equal(torch.isfinite(a), torch.isfinite(b)):
        a, b = (torch.where(torch.isfinite(t), t, torch.zeros_like(t)) for t in (a, b))
    error = relative_error(a, b) if not b.is_complex() else relative_error(torch.view_as_real(a), torch.view_as_real(b))
    return None if error <= tolerance else f"its output would differ by {error:.1e} of its largest value"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else ""
