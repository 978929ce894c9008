"""Hooks on the original while it runs: they run rewritten parts on the same arguments, or record the order of calls."""

from __future__ import annotations

import functools
import itertools
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from unbranch.convert.prove.differences import Verdict, difference, failure
from unbranch.graph.running import Runner, cloned, observation


class SideBySide:
    """Runs rewritten parts next to the original's, on the same arguments, while the original runs."""

    _MOST = 2  # calls of one part that are compared

    def __init__(
        self, beside: Runner, paths: set[str], crossed: set[str], tolerance: float, verdict: Verdict, seen: set[str]
    ) -> None:  # fmt: skip
        self.beside: Runner | None = beside
        self._paths, self._crossed, self._tolerance = paths, crossed, tolerance
        self._verdict, self._seen = verdict, seen

    def install(self, running: nn.Module, beside: nn.Module | None) -> list[RemovableHandle]:
        """Register hooks on the parts of a copy of the original; they run the parts of ``beside``."""
        assert beside is not None
        handles = []
        for path in self._paths | self._crossed:
            mark = functools.partial(self._mark, path)
            for inner in running.get_submodule(path).modules():
                if inner._parameters or inner._buffers:
                    handles.append(inner.register_forward_pre_hook(mark))
        for path in self._paths:
            part = part_of(beside, path)
            if part is not None:
                handles += self._install(path, running.get_submodule(path), part)
        return handles

    def _mark(self, path: str, _module: nn.Module, _args: Any) -> None:
        self._verdict.run.add(path)

    def _install(self, path: str, original: nn.Module, part: nn.Module) -> list[RemovableHandle]:
        calls: list[Any] = []

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            calls.append(cloned((args, kwargs)))

        def after(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given, named = calls.pop()
            self._seen.add(path)
            done.append(None)
            if len(done) > self._MOST:
                return
            try:
                ours = observation(part(*given, **named), given, named)
            except Exception as error:
                self._verdict.note(path, failure(error))
                return
            if path not in self._verdict.different:
                self._verdict.note(path, difference(ours, observation(output, args, kwargs), self._tolerance))

        done: list[None] = []
        return [
            original.register_forward_pre_hook(before, with_kwargs=True),
            original.register_forward_hook(after, with_kwargs=True),
        ]


Rows = dict[Any, tuple[tuple[str, ...], str]]
"""Rewrites, each with the paths of the modules that one layer replaces, if any, and of the part that is rewritten."""


class RowOrder:
    """Records whether rows of modules run one after the other, and whether parts run as a whole."""

    beside: Runner | None = None

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._running: list[str] = []
        self._seen: list[tuple[str, Any, Any]] = []
        self._alone: set[str] = set()

    def install(self, running: nn.Module, _beside: nn.Module | None) -> list[RemovableHandle]:
        """Register hooks on the modules of a copy of the original."""
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

    def out_of_order(self) -> list[Any]:
        """Return the rewrites whose modules didn't run as one row."""
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


def part_of(plain: nn.Module, path: str) -> nn.Module | None:
    """Return the part at a path; None if an enclosing module was replaced, which is then compared as a whole."""
    try:
        part = plain.get_submodule(path)
    except AttributeError:
        return None
    return None if type(part).forward is nn.Module.forward else part


class MethodAsForward(nn.Module):
    """A module whose forward is another method of a network."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.network, self.name)(*args, **kwargs)
