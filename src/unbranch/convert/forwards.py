"""The proof of a conversion: rewritten parts against the original parts' own forwards, run by PyTorch.

A merge that was made from a misread forward agrees with the reading, so the reading proves nothing. Here the
original's forward and the rewritten part's run in float64 on the same arguments: those that its callers pass, with
noise in their tensors. What they return, what they write into their arguments, and what they leave in attributes and
buffers has to be the same.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..graph.float64 import Float64, Shaken
from ..graph.guarded import (
    Observation,
    RandomDrawError,
    Runner,
    fresh,
    observation,
    observe,
)
from ..graph.probe import Arguments, larger, probe, runs, small
from ..rules import rule_of_base
from .prove import relative_error
from .reasons import DEPENDS_ON_ROUNDING, NO_INPUT
from .variants import variants_of
from .verify import misfit

EXACT = 2e-7  # of the largest value, for layers not rounded yet: constants that a forward makes anew may be float32
ROUNDED = 1e-3  # the same where they have been, to the network's own dtype
_UNLIKE = 0.1  # of the largest value: outputs in the network's own dtype that differ by more aren't the same function


def expected_input(module: nn.Module) -> tuple[int, int, bool] | None:
    """Channels and rank of a layer's input, where it has a rule that knows."""
    rule = rule_of_base(module)
    if rule is None or rule.channels is None:
        return None
    try:
        return rule.channels(module)
    except Exception:  # a lazy layer, or a rule of the user's that doesn't fit
        return None


def sizes_of(network: nn.Module) -> tuple[Arguments, Arguments] | None:
    """Inputs of two sizes for a network on the meta device, which can be read and not be proved."""
    try:
        found = probe(network, expected_input)
    except Exception:  # what it does needs numbers
        return None
    return (found[0], found[1]) if len(found) == 2 else None


@dataclass(eq=False)
class Verdict:
    """What a comparison of a rewritten network with its original found.

    Args:
        proved: paths of parts that agree.
        different: paths of parts that don't, with how they differ.
        unprovable: paths of parts that can't be compared, with the reason.
        run: paths of parts of which the network's forward runs something.
    """

    proved: set[str] = field(default_factory=set)
    run: set[str] = field(default_factory=set)
    different: dict[str, str] = field(default_factory=dict)
    unprovable: dict[str, str] = field(default_factory=dict)

    def holds(self, path: str) -> bool:
        """Whether a part agrees, by itself or as a part of another one that runs it."""
        around = [p for p in self.proved if lies_in(path, p)]
        return path in self.proved or (bool(around) and (path in self.run or around != [""]))

    def note(self, path: str, reason: str | None) -> None:
        """Enter the outcome of one comparison."""
        if reason is None:
            if path not in self.unprovable:  # on another input
                self.proved.add(path)
        else:
            self.different.setdefault(path, reason)
            self.proved.discard(path)


@dataclass(eq=False)
class Forwards:
    """The original network, and inputs to try it on.

    Args:
        network: the original.
        example: an input of the user's.

    Raises:
        InputError: if the network doesn't run on the example.
    """

    network: nn.Module
    example: tuple[Any, ...] | None = None
    given: list[Arguments] = field(default_factory=list)
    _native: list[Observation] = field(default_factory=list)
    _noise: float = 0.0
    _reason: str | None = None
    _selects: bool = False
    _parts: dict[str, list[Arguments]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._original = Runner(self.network)
        try:
            if self.example is None:
                self.given = probe(self.network, expected_input, self._original)
            else:
                self.given = [Arguments(self.example)]
            if self.given:
                self._learn(self.given[0])
        except RandomDrawError:
            self._reason = "it draws random numbers in evaluation"
        if not self.given and self._reason is None:
            self._reason = NO_INPUT

    @functools.cached_property
    def pair(self) -> tuple[Arguments, Arguments] | None:
        """Two inputs of different sizes, of batches at least, that the network takes."""
        if len(self.given) == 2:
            return self.given[0], self.given[1]
        if self.given and self._reason is None:
            for other in larger(self.given[0]):
                with contextlib.suppress(RandomDrawError):  # for that size alone
                    if runs(self._original, other):
                        return self.given[0], other
        return None

    @functools.cached_property
    def small(self) -> list[Arguments]:
        """A small image, if the network takes one."""
        if not self.given:
            return []
        with contextlib.suppress(RandomDrawError):  # for one small image alone
            found = small(self.given[0], self._original)
            return [] if found is None else [found]
        return []

    def _learn(self, given: Arguments) -> None:
        try:
            self._native = _twice(self._original, given)
        except RandomDrawError:
            raise
        except Exception as error:
            raise misfit(self.network, given.args, error) from error
        if _unlike(self._native[1], self._native[0], 0.0, changes=False) is not None:
            self._reason = "its output differs between two runs on one input"

    def compare(self, plain: nn.Module, paths: set[str], crossed: set[str], tolerance: float) -> Verdict:
        """Compare a rewritten network with the original: the parts at ``paths``, and both as a whole, in float64.

        Of parts at ``crossed``, whose outputs change, it is only found out whether they run.
        """
        verdict = Verdict()
        seen: set[str] = set()
        self._plain = Runner(plain)
        if self._reason is None:
            for j, given in enumerate([*self.given, *self.small]):
                watch = _Watch(self._plain, paths - {""}, crossed, tolerance, verdict, seen) if not j else None
                self._compare_whole(watch, j, given, tolerance, verdict)
        else:
            verdict.unprovable[""] = self._reason
        for path in paths - seen - {""}:
            if "" not in verdict.proved or path not in verdict.run:
                self._compare_part(path, plain, tolerance, verdict)
        return verdict

    def differing_options(self, rows: Rows, tolerance: float) -> dict[Any, str]:
        """Rewrites of the network compared last that are wrong where it is called with other options, and the reason.

        Those are at fault of which a call runs something otherwise, or all of them where none is seen to be.
        """
        if self._reason is not None or not self.given:
            return {}
        for words, given in self.variants:
            if not given.exact:
                continue
            try:
                (ours,) = self._plain.observe(given.args, given.kwargs, Float64)
                reason = _unlike(ours, given.exact[0], max(tolerance, EXACT * self._noise))
            except (Exception, SystemExit) as error:
                reason = _crash(error)
            if reason is not None and not self._selects:
                watch = _Rows(rows)
                with contextlib.suppress(Exception, SystemExit):  # it ran before
                    self._original.observe(given.args, given.kwargs, Float64, watch=watch)
                return dict.fromkeys(watch.otherwise() or rows, f"{reason}, with {words}")
        return {}

    @functools.cached_property
    def variants(self) -> list[tuple[str, Arguments]]:
        """Calls with other options that the network takes, with what they give in float64."""
        smallest = [*self.small, *self.given][:1]
        found = [variant for given in smallest for variant in variants_of(self.network, given)]
        for _, given in found:
            with contextlib.suppress(Exception, SystemExit):  # a value that it doesn't take
                given.exact.extend(self._original.observe(given.args, given.kwargs, Float64))
        return found

    def method_differs(self, plain: nn.Module, name: str, tolerance: float) -> str | None:
        """How what a method of the network returns for its input would change, or why that isn't known."""
        title = f"{type(self.network).__name__}.{name}"
        if self._reason is not None or not self.given:
            return f"{title} can't be run: {self._reason}"
        given = self.given[0]
        try:
            (theirs,) = observe(_Method(self.network, name), given.args, given.kwargs, Float64)
        except Exception as error:
            return f"{title} may show what is between ({type(error).__name__} when it is run: {_first_line(error)})"
        try:
            (ours,) = observe(_Method(plain, name), given.args, given.kwargs, Float64)
        except Exception as error:
            return f"{title}: {_crash(error)}"
        reason = _unlike(ours, theirs, max(tolerance, EXACT * self._noise))
        return None if reason is None else f"{title} shows what is between: {reason}"

    def agrees(self, plain: nn.Module) -> str | None:
        """How the finished network differs in its own dtype: in dtypes, structure, or what it keeps."""
        if self._reason is not None or not self.given:
            return None
        runner = Runner(plain)
        try:
            (ours,) = runner.observe(self.given[0].args, self.given[0].kwargs, contextlib.nullcontext)
        except Exception as error:
            return _crash(error)
        if self._selects:
            return _unlike_in_kind(ours, self._native[0])
        limit = max(_UNLIKE, 8 * self._noise)
        return _unlike(ours, self._native[0], limit) or self._options_agree(runner, limit)

    def _options_agree(self, runner: Runner, limit: float) -> str | None:
        for words, given in self.variants:
            if not given.exact:
                continue
            try:
                if not given.native:
                    given.native.extend(self._original.observe(given.args, given.kwargs, contextlib.nullcontext))
            except Exception:  # it runs in float64 alone
                continue
            try:
                (ours,) = runner.observe(given.args, given.kwargs, contextlib.nullcontext)
                reason = _unlike(ours, given.native[0], limit)
            except (Exception, SystemExit) as error:
                reason = _crash(error)
            if reason is not None:
                return f"{reason}, with {words}"
        return None

    def _compare_whole(
        self, watch: _Watch | None, j: int, given: Arguments, tolerance: float, verdict: Verdict
    ) -> None:
        try:
            if not given.exact or watch is not None:
                given.exact[:] = self._original.observe(given.args, given.kwargs, Float64, watch=watch)
        except RandomDrawError:
            verdict.unprovable[""] = "it draws random numbers in evaluation"
            return
        except Exception as error:
            verdict.unprovable[""] = f"it doesn't run in float64 ({type(error).__name__}: {_first_line(error)})"
            return
        theirs = given.exact[0]
        if not j and len(theirs.outputs) == len(self._native[0].outputs):
            pairs = zip(self._native[0].outputs, theirs.outputs, strict=True)
            self._noise = max((_distance(a, b) for a, b in pairs if a.shape == b.shape), default=0.0)
        try:
            (ours,) = self._plain.observe(given.args, given.kwargs, Float64)
        except Exception as error:
            verdict.note("", _crash(error))
            return
        limit = max(tolerance, EXACT * self._noise if tolerance <= EXACT else min(8 * self._noise, ROUNDED))
        reason = _unlike(ours, theirs, limit)
        if reason is not None and self._depends_on_rounding(given, theirs, limit):
            self._selects = True
            verdict.unprovable[""] = DEPENDS_ON_ROUNDING
            verdict.proved.discard("")
        elif "" not in verdict.different:
            verdict.note("", reason)

    def _depends_on_rounding(self, given: Arguments, theirs: Observation, limit: float) -> bool:
        """Whether the original itself differs from what it gave if its layers round otherwise, as where scores tie."""
        try:
            (shaken,) = self._original.observe(given.args, given.kwargs, Shaken)
        except Exception:  # it doesn't run on that, so nothing is known
            return False
        return _unlike(shaken, theirs, limit, changes=False) is not None

    def _compare_part(self, path: str, plain: nn.Module, tolerance: float, verdict: Verdict) -> None:
        """Compare a part on inputs of its own, where the network's forward didn't come to it."""
        original = self.network.get_submodule(path)
        part = _part_of(plain, path)
        if part is None:
            return
        try:
            runner = Runner(original)
            if path not in self._parts:
                self._parts[path] = probe(original, expected_input, runner)
            for given in self._parts[path]:
                first, second = _twice(runner, given)
                if _unlike(second, first, 0.0, changes=False) is not None:
                    verdict.unprovable[path] = "its output differs between two runs on one input"
                    return
                if not given.exact:
                    given.exact.extend(runner.observe(given.args, given.kwargs, Float64))
                theirs = given.exact[0]
                try:
                    (ours,) = observe(part, given.args, given.kwargs, Float64)
                except Exception as error:
                    verdict.note(path, _crash(error))
                    return
                noise = max((_distance(a, b) for a, b in zip(first.outputs, theirs.outputs, strict=False)), default=0.0)
                verdict.note(path, _unlike(ours, theirs, max(tolerance, EXACT * noise)))
        except RandomDrawError:
            verdict.unprovable[path] = "it draws random numbers in evaluation"
        except Exception as error:
            verdict.unprovable[path] = f"it doesn't run in float64 ({type(error).__name__}: {_first_line(error)})"


def _twice(runner: Runner, given: Arguments) -> list[Observation]:
    """Two runs of one copy, one right after the other: what the first leaves anywhere is there in the second."""
    return runner.observe(given.args, given.kwargs, contextlib.nullcontext, times=2)


class _Method(nn.Module):
    """A network that is run by another method than its forward."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.network, self.name)(*args, **kwargs)


class _Watch:
    """Runs rewritten parts beside the original's, on what the original's are given, while the original runs."""

    _MOST = 2  # calls of one part that are compared

    def __init__(
        self, beside: Runner, paths: set[str], crossed: set[str], tolerance: float, verdict: Verdict, seen: set[str]
    ) -> None:  # fmt: skip
        self.beside: Runner | None = beside
        self._paths, self._crossed, self._tolerance = paths, crossed, tolerance
        self._verdict, self._seen = verdict, seen

    def install(self, running: nn.Module, beside: nn.Module | None) -> list[RemovableHandle]:
        """Put hooks on the parts of a copy of the original, which run those of a copy of the rewritten network."""
        assert beside is not None
        handles = []
        for path in self._paths | self._crossed:
            mark = functools.partial(self._mark, path)
            for inner in running.get_submodule(path).modules():
                if inner._parameters or inner._buffers:
                    handles.append(inner.register_forward_pre_hook(mark))
        for path in self._paths:
            part = _part_of(beside, path)
            if part is not None:
                handles += self._install(path, running.get_submodule(path), part)
        return handles

    def _mark(self, path: str, _module: nn.Module, _args: Any) -> None:
        self._verdict.run.add(path)

    def _install(self, path: str, original: nn.Module, part: nn.Module) -> list[RemovableHandle]:
        calls: list[Any] = []

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            calls.append(fresh((args, kwargs)))

        def after(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given, named = calls.pop()
            self._seen.add(path)
            done.append(None)
            if len(done) > self._MOST:
                return
            try:
                ours = observation(part(*given, **named), given, named)
            except Exception as error:
                self._verdict.note(path, _crash(error))
                return
            if path not in self._verdict.different:
                self._verdict.note(path, _unlike(ours, observation(output, args, kwargs), self._tolerance))

        done: list[None] = []
        return [
            original.register_forward_pre_hook(before, with_kwargs=True),
            original.register_forward_hook(after, with_kwargs=True),
        ]


def lies_in(path: str, around: str) -> bool:
    """Whether a path is, or is inside, another one."""
    return not around or path == around or path.startswith(f"{around}.")


Rows = dict[Any, tuple[tuple[str, ...], str]]
"""Rewrites, with the paths of modules that one layer stands for, or none, and of the part that is rewritten."""


class _Rows:
    """Notices which rows of modules aren't run one after the other, and which parts are run in pieces."""

    beside: Runner | None = None

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._running: list[str] = []
        self._seen: list[tuple[str, Any, Any]] = []
        self._alone: set[str] = set()

    def install(self, running: nn.Module, _beside: nn.Module | None) -> list[RemovableHandle]:
        """Put hooks on the modules of a copy of the original."""
        handles = []
        for path, module in running.named_modules():
            enter, leave = functools.partial(self._enter, path), functools.partial(self._leave, path)
            handles += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave, always_call=True),
            ]
        return handles

    def _enter(self, path: str, _module: nn.Module, _args: Any) -> None:
        inside = {around for _, around in self._rows.values() if around and path.startswith(f"{around}.")}
        self._alone |= inside - set(self._running)
        self._running.append(path)

    def _leave(self, path: str, _module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
        self._seen.append((path, args[0] if args else None, output))

    def otherwise(self) -> list[Any]:
        """Rewrites whose modules were run in another way than as one row."""
        return [key for key, (row, part) in self._rows.items() if part in self._alone or not self._in_a_row(row)]

    def _in_a_row(self, row: tuple[str, ...]) -> bool:
        calls = [[(given, output) for path, given, output in self._seen if path == one] for one in row]
        if len({len(c) for c in calls}) > 1:
            return False
        return all(
            first[1] is second[0]
            for one, after in itertools.pairwise(calls)
            for first, second in zip(one, after, strict=True)
        )


def _part_of(plain: nn.Module, path: str) -> nn.Module | None:
    """The part at a path; None where something around it was replaced, and is compared as a whole."""
    try:
        part = plain.get_submodule(path)
    except AttributeError:
        return None
    return None if type(part).forward is nn.Module.forward else part


def _unlike(ours: Observation, theirs: Observation, tolerance: float, *, changes: bool = True) -> str | None:
    """How an observation differs from the original's."""
    if (reason := _unlike_in_kind(ours, theirs)) is not None:
        return reason
    for a, b in zip(ours.outputs, theirs.outputs, strict=True):
        if a.shape != b.shape:
            return f"its output would have the shape {tuple(a.shape)} instead of {tuple(b.shape)}"
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


def _unlike_in_kind(ours: Observation, theirs: Observation) -> str | None:
    """How the structure of outputs or their dtypes differ from the original's."""
    if ours.structure != theirs.structure or len(ours.outputs) != len(theirs.outputs):
        return "its outputs would have another structure"
    for a, b in zip(ours.outputs, theirs.outputs, strict=True):
        if a.dtype != b.dtype:
            return f"its output would be {a.dtype} instead of {b.dtype}"
    return None


def _values(a: Tensor, b: Tensor, tolerance: float) -> str | None:
    error = _distance(a, b)
    if error <= tolerance:
        return None
    exact = not (b.is_floating_point() or b.is_complex())
    return (
        "its integer outputs would differ" if exact else f"its output would differ by {error:.1e} of its largest value"
    )


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of ``b``; what isn't finite has to be so in both."""
    if a.is_meta or b.is_meta or not b.numel():
        return 0.0
    if not (b.is_floating_point() or b.is_complex()):
        return 0.0 if a.shape == b.shape and torch.equal(a, b) else float("inf")
    if b.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if a.shape == b.shape and torch.equal(torch.isfinite(a), torch.isfinite(b)):
        a, b = (torch.where(torch.isfinite(t), t, torch.zeros_like(t)) for t in (a, b))
    return relative_error(a, b)


def _crash(error: BaseException) -> str:
    return f"the rewritten part can't be run ({type(error).__name__}: {_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else ""
