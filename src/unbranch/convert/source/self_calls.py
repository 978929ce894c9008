"""Read from a method's source code what it calls, reads, sets and deletes on ``self``."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from typing import Any

Pattern = tuple[str, ...]
"""A path of attributes from ``self``; ``*`` stands for any element of a container."""


_THROUGH = {"enumerate", "zip", "reversed", "list", "tuple", "iter", "sorted"}


_ELEMENTS = {"children", "values", "items", "named_children", "modules"}


@functools.lru_cache(maxsize=4096)
def deleted_by(method: Any) -> frozenset[str]:
    """Return the names of attributes that a method deletes, by a statement or a call."""
    found: set[str] = set()
    for node in ast.walk(tree_of(method)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Del):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[-1], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("delattr", "__delattr__"):
                found.add(str(node.args[-1].value))
    return frozenset(found)


@functools.lru_cache(maxsize=4096)
def stored_by(method: Any) -> frozenset[str]:
    """Return the names of the attributes that a function sets; most classes inherit the same functions."""
    nodes = ast.walk(tree_of(method))
    return frozenset(n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))


def tree_of(method: Any) -> ast.AST:
    """Parse the source of a function; returns an empty module if it isn't available."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


@functools.lru_cache(maxsize=4096)
def passed_on_by(method: Any) -> frozenset[Pattern]:
    """Return patterns of what a method passes to functions among its arguments."""
    try:
        own, *others = inspect.signature(method).parameters
    except ValueError:
        return frozenset()
    reader = _Reader(own)
    tree = tree_of(method)
    reader.visit(tree)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", None) in others]
    patterns = (reader.pattern_of(argument) for call in calls for argument in call.args)
    return frozenset(pattern for pattern in patterns if pattern is not None)


@functools.lru_cache(maxsize=4096)
def read_by(method: Any) -> tuple[frozenset[Pattern], frozenset[str]]:
    """Return patterns of what a method calls, and the names of all attributes of ``self`` that it reads."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        own = next(iter(inspect.signature(method).parameters))
    except (OSError, TypeError, SyntaxError, ValueError, StopIteration):
        return frozenset(), frozenset()
    reader = _Reader(own)
    reader.visit(tree)
    reader.visit(tree)  # a second time, for names that loops bind after their first use
    return frozenset(reader.runs), frozenset(reader.reads - reader.stores)


class _Reader(ast.NodeVisitor):
    """Tracks names and attributes from ``self`` to calls."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._names: dict[str, Pattern] = {}
        self.runs: set[Pattern] = set()
        self.reads: set[str] = set()
        self.stores: set[str] = set()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id == self._own:
            (self.reads if isinstance(node.ctx, ast.Load) else self.stores).add(node.attr)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        pattern = self._pattern(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name) and pattern:
                self._names[target.id] = pattern

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_ListComp(self, node: Any) -> None:
        for generator in node.generators:
            self.visit(generator)
        self.visit(node.elt)

    visit_GeneratorExp = visit_SetComp = visit_ListComp  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:
        pattern = self._pattern(node.func)
        if pattern:
            sliced = isinstance(node.func, ast.Subscript) and isinstance(node.func.slice, ast.Slice)
            self.runs.add((*pattern, "*") if sliced else pattern)
        self.generic_visit(node)

    def pattern_of(self, node: ast.expr) -> Pattern | None:
        """Return the path from ``self`` that an expression reads, after the code was visited."""
        return self._pattern(node)

    def _bind(self, target: ast.expr, source: ast.expr) -> None:
        """Bind the names of a loop to the elements of the containers that it iterates over."""
        containers = [pattern for pattern in self._containers(source) if pattern is not None]
        names = [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
        for pattern in containers:
            for name in names:
                self._names[name] = (*pattern, "*")

    def _containers(self, source: ast.expr) -> list[Pattern | None]:
        if isinstance(source, ast.Subscript) and isinstance(source.slice, ast.Slice):
            return self._containers(source.value)
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.func.id in _THROUGH:
            return [pattern for argument in source.args for pattern in self._containers(argument)]
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Attribute) and source.func.attr in _ELEMENTS:
            return [self._pattern(source.func.value)]
        return [self._pattern(source)]

    def _pattern(self, node: ast.expr) -> Pattern | None:
        """Return the path from ``self`` that an expression reads."""
        if isinstance(node, ast.Name):
            return () if node.id == self._own else self._names.get(node.id)
        if isinstance(node, ast.Attribute):
            around = self._pattern(node.value)
            return None if around is None else (*around, node.attr)
        if isinstance(node, ast.Subscript):
            around = self._pattern(node.value)
            if around is None or isinstance(node.slice, ast.Slice):
                return around
            key = node.slice.value if isinstance(node.slice, ast.Constant) else "*"
            return (*around, str(key) if not isinstance(key, int) or key >= 0 else "*")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _THROUGH and node.args:
            return self._pattern(node.args[0])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr" and node.args:
            around, name = self._pattern(node.args[0]), node.args[1] if len(node.args) > 1 else None
            step = str(name.value) if isinstance(name, ast.Constant) else "*"
            return None if around is None else (*around, step)
        return None
