"""Prove a conversion: run rewritten parts and the original parts' own forwards on the same arguments.

A merge that comes from a misunderstood forward agrees with the trace, so comparing with the trace proves nothing. Here
PyTorch runs the original's forward and the rewritten part's in float64, on the arguments that callers pass, with noise
in their tensors. Outputs, writes into arguments, and changes of attributes and buffers must be the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from unbranch.convert.faults import first_line, is_full
from unbranch.convert.prove.differences import Verdict, difference, distance, failure, structural_difference
from unbranch.convert.prove.inputs import expected_input, input_error
from unbranch.convert.prove.variants import variants_of
from unbranch.convert.prove.watch import MethodAsForward, RowOrder, Rows, SideBySide, part_of
from unbranch.convert.reasons import DEPENDS_ON_ROUNDING, NO_INPUT, NOT_REPEATABLE, RANDOM
from unbranch.graph.float64 import Float64, PerturbedRounding
from unbranch.graph.guard import RandomDrawError
from unbranch.graph.probe import Arguments, larger, probe, runs, small
from unbranch.graph.running import Observation, Runner, observe

EXACT = 2e-7  # of the largest value, for layers that aren't rounded yet: constants created by a forward may be float32
ROUNDED = 1e-3  # the same for layers that were rounded to the network's dtype
_NATIVE = 3  # calls with other options that are also run in the network's dtype
_OPERATIONS = 50_000  # that a call with other options may launch, in case it waits for something
_FEW = 2  # other options that are tried on an input that may be large
_UNLIKE = 0.1  # of the largest value: outputs in the network's dtype that differ by more aren't the same function


@dataclass(eq=False)
class Forwards:
    """The original network, with inputs to run it on.

    Args:
        network: the original.
        example: the user's example input, if any.

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
            self._reason = RANDOM
        if not self.given and self._reason is None:
            self._reason = NO_INPUT

    @functools.cached_property
    def pair(self) -> tuple[Arguments, Arguments] | None:
        """Return two inputs that the network accepts, of different sizes or at least batches."""
        if len(self.given) == 2:
            return self.given[0], self.given[1]
        if self.given and self._reason is None:
            for other in larger(self.given[0]):
                with contextlib.suppress(RandomDrawError):  # for this size only
                    if runs(self._original, other):
                        return self.given[0], other
        return None

    @functools.cached_property
    def small(self) -> list[Arguments]:
        """Return a small image, if the network accepts one."""
        if not self.given:
            return []
        with contextlib.suppress(RandomDrawError):  # for this size only
            found = small(self.given[0], self._original)
            return [] if found is None else [found]
        return []

    def _learn(self, given: Arguments) -> None:
        try:
            self._native = _twice(self._original, given)
        except RandomDrawError:
            raise
        except Exception as error:
            raise input_error(self.network, given.args, error) from error
        if difference(self._native[1], self._native[0], 0.0, changes=False) is not None:
            self._reason = NOT_REPEATABLE

    def compare(self, plain: nn.Module, paths: set[str], crossed: set[str], tolerance: float) -> Verdict:
        """Compare a rewritten network with the original in float64: the parts at ``paths``, and both as a whole.

        Parts at ``crossed``, whose outputs are meant to change, are only checked for whether they run.
        """
        verdict = Verdict()
        seen: set[str] = set()
        self._plain = Runner(plain)
        if self._reason is None:
            for j, given in enumerate([*self.given, *self.small]):
                watch = SideBySide(self._plain, paths - {""}, crossed, tolerance, verdict, seen) if not j else None
                self._compare_whole(watch, j, given, tolerance, verdict)
        else:
            verdict.unprovable[""] = self._reason
        for path in paths - seen - {""}:
            if "" not in verdict.proved or path not in verdict.run:
                self._compare_part(path, plain, tolerance, verdict)
        return verdict

    def differing_options(self, rows: Rows, tolerance: float) -> dict[Any, str]:
        """Return rewrites of the last compared network that are wrong for other options, with the reason.

        These are the rewrites whose modules such a call runs differently, or all if there are none.
        """
        if self._reason is not None or not self.given:
            return {}
        for words, given in self.variants:
            if not given.exact:
                continue
            try:
                (ours,) = self._plain.observe(given.args, given.kwargs, Float64, most=_OPERATIONS)
                reason = difference(ours, given.exact[0], max(tolerance, EXACT * self._noise))
            except (Exception, SystemExit) as error:
                reason = None if is_full(error) else failure(error)
            if reason is not None and not self._selects and self._repeats(given, given.exact[0], Float64):
                watch = RowOrder(rows)
                with contextlib.suppress(Exception, SystemExit):  # it ran before
                    self._original.observe(given.args, given.kwargs, Float64, watch=watch)
                return dict.fromkeys(watch.out_of_order() or rows, f"{reason}, with {words}")
        return {}

    @functools.cached_property
    def variants(self) -> list[tuple[str, Arguments]]:
        """Return calls with other options that the network accepts, with its outputs in float64."""
        found = variants_of(self.network, (self.small or self.given)[0])
        if found and self.example is not None and not self.small:  # the example may be large
            with contextlib.suppress(RandomDrawError):
                other = probe(self.network, expected_input, self._original)
                found = variants_of(self.network, other[0]) if other else found[:_FEW]
        for _, given in found:
            with contextlib.suppress(Exception, SystemExit):  # a value that it rejects
                given.exact.extend(self._original.observe(given.args, given.kwargs, Float64, most=_OPERATIONS))
        return found

    def method_differs(self, plain: nn.Module, name: str, tolerance: float) -> str | None:
        """Return how another method's result would change, or why that isn't known; None if it agrees."""
        title = f"{type(self.network).__name__}.{name}"
        if self._reason is not None or not self.given:
            return f"{title} can't be run: {self._reason}"
        given = self.given[0]
        try:
            (theirs,) = observe(MethodAsForward(self.network, name), given.args, given.kwargs, Float64)
        except Exception as error:
            return (
                f"{title} may return an intermediate value ({type(error).__name__} when it is run: {first_line(error)})"
            )
        try:
            (ours,) = observe(MethodAsForward(plain, name), given.args, given.kwargs, Float64)
        except Exception as error:
            return f"{title}: {failure(error)}"
        reason = difference(ours, theirs, max(tolerance, EXACT * self._noise))
        return None if reason is None else f"{title} returns an intermediate value: {reason}"

    def agrees(self, plain: nn.Module) -> str | None:
        """Return how the finished network differs in its own dtype: in dtypes, structure, or stored state."""
        if self._reason is not None or not self.given:
            return None
        runner = Runner(plain)
        try:
            (ours,) = runner.observe(self.given[0].args, self.given[0].kwargs, contextlib.nullcontext)
        except Exception as error:
            return failure(error)
        if self._selects:
            return structural_difference(ours, self._native[0])
        limit = max(_UNLIKE, 8 * self._noise)
        return difference(ours, self._native[0], limit) or self._options_agree(runner, limit)

    def _options_agree(self, runner: Runner, limit: float) -> str | None:
        for words, given in [v for v in self.variants if v[1].exact][:_NATIVE]:
            try:
                if not given.native:
                    mode = contextlib.nullcontext
                    given.native.extend(self._original.observe(given.args, given.kwargs, mode, most=_OPERATIONS))
            except (Exception, SystemExit):  # it only runs in float64
                continue
            try:
                (ours,) = runner.observe(given.args, given.kwargs, contextlib.nullcontext, most=_OPERATIONS)
                reason = difference(ours, given.native[0], limit)
            except (Exception, SystemExit) as error:
                reason = None if is_full(error) else failure(error)
            if reason is not None and self._repeats(given, given.native[0], contextlib.nullcontext):
                return f"{reason}, with {words}"
        return None

    def _repeats(self, given: Arguments, first: Observation, mode: Callable[[], Any]) -> bool:
        """Whether the original returns the same result again: it may depend on the time."""
        try:
            (second,) = self._original.observe(given.args, given.kwargs, mode, most=_OPERATIONS)
        except (Exception, SystemExit):
            return False
        return difference(second, first, EXACT, changes=False) is None

    def _compare_whole(
        self, watch: SideBySide | None, j: int, given: Arguments, tolerance: float, verdict: Verdict
    ) -> None:
        try:
            if not given.exact or watch is not None:
                given.exact[:] = self._original.observe(given.args, given.kwargs, Float64, watch=watch)
        except RandomDrawError:
            verdict.unprovable[""] = RANDOM
            return
        except Exception as error:
            verdict.unprovable[""] = f"it doesn't run in float64 ({type(error).__name__}: {first_line(error)})"
            return
        theirs = given.exact[0]
        if not j and len(theirs.outputs) == len(self._native[0].outputs):
            pairs = zip(self._native[0].outputs, theirs.outputs, strict=True)
            self._noise = max((distance(a, b) for a, b in pairs if a.shape == b.shape), default=0.0)
        try:
            (ours,) = self._plain.observe(given.args, given.kwargs, Float64)
        except Exception as error:
            verdict.note("", failure(error))
            return
        limit = max(tolerance, EXACT * self._noise if tolerance <= EXACT else min(8 * self._noise, ROUNDED))
        reason = difference(ours, theirs, limit)
        if reason is not None and self._depends_on_rounding(given, theirs, limit):
            self._selects = True
            verdict.unprovable[""] = DEPENDS_ON_ROUNDING
            verdict.proved.discard("")
        elif "" not in verdict.different:
            verdict.note("", reason)

    def _depends_on_rounding(self, given: Arguments, theirs: Observation, limit: float) -> bool:
        """Whether the original's own outputs change if its layers round differently, for example because scores tie."""
        try:
            (shaken,) = self._original.observe(given.args, given.kwargs, PerturbedRounding)
        except Exception:  # it doesn't run like that, so nothing is known
            return False
        return difference(shaken, theirs, limit, changes=False) is not None

    def _compare_part(self, path: str, plain: nn.Module, tolerance: float, verdict: Verdict) -> None:
        """Compare a part on generated inputs, if the network's forward didn't run it."""
        original = self.network.get_submodule(path)
        part = part_of(plain, path)
        if part is None:
            return
        try:
            runner = Runner(original)
            if path not in self._parts:
                self._parts[path] = probe(original, expected_input, runner)
            for given in self._parts[path]:
                first, second = _twice(runner, given)
                if difference(second, first, 0.0, changes=False) is not None:
                    verdict.unprovable[path] = NOT_REPEATABLE
                    return
                if not given.exact:
                    given.exact.extend(runner.observe(given.args, given.kwargs, Float64))
                theirs = given.exact[0]
                try:
                    (ours,) = observe(part, given.args, given.kwargs, Float64)
                except Exception as error:
                    verdict.note(path, failure(error))
                    return
                noise = max((distance(a, b) for a, b in zip(first.outputs, theirs.outputs, strict=False)), default=0.0)
                verdict.note(path, difference(ours, theirs, max(tolerance, EXACT * noise)))
        except RandomDrawError:
            verdict.unprovable[path] = RANDOM
        except Exception as error:
            verdict.unprovable[path] = f"it doesn't run in float64 ({type(error).__name__}: {first_line(error)})"


def _twice(runner: Runner, given: Arguments) -> list[Observation]:
    """Run one copy twice in a row, so that anything the first run leaves behind affects the second."""
    return runner.observe(given.args, given.kwargs, contextlib.nullcontext, times=2)
