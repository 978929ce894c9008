"""What the methods of a class besides ``forward`` run: parts whose outputs they show to whoever calls them.

``forward_features``, ``forward_intermediates`` and their kin return what lies inside a network, so a merge that moves a
layer from one of the parts that they run into another would change what they return. Decided is by what can be called
today, not by a method's name: a ``forward_fuse`` for the time after a conversion reads attributes that don't exist, and
``get_equivalent_kernel_bias`` runs nothing.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

Pattern = tuple[str, ...]
"""A path of attributes from ``self``; ``*`` stands for any element of a container."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_THROUGH = {"enumerate", "zip", "reversed", "list", "tuple", "iter", "sorted"}
_ELEMENTS = {"children", "values", "items", "named_children", "modules"}


def entry_points(module: nn.Module) -> list[str]:
    """Methods of a module's class, besides ``forward``, that run children of it and can be called as it is now.

    Helpers of the forward, which it calls with more than it is given itself, don't count, and neither do forwards for
    the time after a conversion of the class's own.
    """
    found = [name for name, runs in _methods(module) if any(_exists(module, pattern) for pattern in runs)]
    return [name for name in found if not _is_helper(module, name) and not _is_for_later(module, name)]


def _is_for_later(module: nn.Module, name: str) -> bool:
    """Whether a method runs a part that another method puts in place when it deletes what the forward runs."""
    forward = inspect.unwrap(type(module).forward)
    now = {p[0] for p in _read(forward)[0]} if inspect.isfunction(forward) else set()
    runs = {p[0] for found, patterns in _methods(module) for p in patterns if found == name}
    for other in {n for base in type(module).__mro__ for n in vars(base)} - {"__init__", "forward", name}:
        method = inspect.getattr_static(type(module), other, None)
        if inspect.isfunction(method) and not method.__module__.startswith("torch."):
            method = inspect.unwrap(method)
            if now & _deleted(method) and runs & _stored(method):
                return True
    return False


@functools.lru_cache(maxsize=4096)
def _deleted(method: Any) -> frozenset[str]:
    """Names of attributes that a method deletes, as a statement or by a call."""
    found: set[str] = set()
    for node in ast.walk(_tree(method)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Del):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[-1], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("delattr", "__delattr__"):
                found.add(str(node.args[-1].value))
    return frozenset(found)


def _is_helper(module: nn.Module, name: str) -> bool:
    forward, method = type(module).forward, inspect.getattr_static(type(module), name, None)
    code = getattr(forward, "__code__", None)
    if code is None or name not in code.co_names or not inspect.isfunction(method):
        return False
    return _needed(method) > max(_needed(forward), 2)


def _needed(method: Any) -> int:
    """How many arguments a method needs, itself included."""
    return sum(p.default is p.empty and p.kind in _POSITIONAL for p in inspect.signature(method).parameters.values())


def shown_by(module: nn.Module, path: str) -> list[str]:
    """Methods of a module's class, besides ``forward``, that run the part at a path from it."""
    steps = tuple(path.split("."))
    return [name for name, runs in _methods(module) if any(_fits(steps, pattern) for pattern in runs)]


def running_all(module: nn.Module, paths: set[str]) -> set[str]:
    """Methods that run all the parts at paths, each by its name; what a loop runs may be shown one by one."""
    runs = dict(_methods(module))
    return {name for name, found in runs.items() if all(tuple(path.split(".")) in found for path in paths)}


def walking_through(module: nn.Module, paths: set[str]) -> set[str]:
    """Methods that run all the parts at paths, in loops too."""
    steps = [tuple(path.split(".")) for path in paths]
    return {name for name, runs in _methods(module) if all(any(_fits(s, p) for p in runs) for s in steps)}


def asks_for(module: nn.Module, path: str, name: str) -> bool:
    """Whether a method of a module's class, besides ``forward``, calls a method of the part at a path from it."""
    steps = (*path.split("."), name)
    return any(_fits(steps, pattern) for _, runs in _methods(module) for pattern in runs)


def looking_into(module: nn.Module, path: str) -> list[str]:
    """Methods of a module's class, besides ``forward``, that run something inside the part at a path from it."""
    steps = tuple(path.split("."))
    return [
        name
        for name, runs in _methods(module)
        if any(len(p) > len(steps) and _fits(steps, p[: len(steps)]) and _exists(module, p) for p in runs)
    ]


@functools.lru_cache(maxsize=4096)
def set_by_class(owner: Any) -> frozenset[str]:
    """Names of the attributes that the methods of a class set."""
    found: set[str] = set()
    for base in owner.__mro__:
        found |= set(vars(base)) | set(getattr(base, "__annotations__", ()))
        if base.__module__.split(".")[0] not in ("builtins", "torch") or base.__module__.startswith(
            "torch.nn.modules."
        ):
            for method in vars(base).values():
                found |= _stored(method) if inspect.isfunction(method) else set()
    return frozenset(found)


def _stored(method: Any) -> set[str]:
    return {n.attr for n in ast.walk(_tree(method)) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}


def _tree(method: Any) -> ast.AST:
    """The code of a function; an empty module where it isn't known."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


def _methods(module: nn.Module) -> Iterator[tuple[str, frozenset[Pattern]]]:
    """Methods that can be called, with what they run."""
    own = {name: value.__func__ for name, value in vars(module).items() if isinstance(value, types.MethodType)}
    bases = [base for base in type(module).__mro__ if not base.__module__.startswith(("torch.", "builtins"))]
    for name in sorted({*own, *(name for base in bases for name in vars(base))}):
        method = own.get(name) or inspect.getattr_static(type(module), name, None)
        if name.startswith("__") or name == "forward" or not inspect.isfunction(method):
            continue
        if (method.__module__ or "").startswith("torch."):
            continue
        runs, reads = _read(method)
        if runs and all(hasattr(module, attribute) for attribute in reads):
            yield name, runs


def reached_by_forward(module: nn.Module) -> list[nn.Module]:
    """Parts of parts that the forward of a module's class calls, past those that they lie in."""
    forward = getattr(type(module).forward, "__wrapped__", type(module).forward)
    runs, _ = _read(forward) if inspect.isfunction(forward) else (frozenset(), None)
    return [part for pattern in sorted(runs) if len(pattern) > 1 for part in _parts(module, pattern)]


def forward_runs(module: nn.Module, path: str, *, inside: bool = False) -> bool:
    """Whether the forward of a module's class itself runs the part at a path from it, or something inside that.

    With ``inside`` only what is inside counts.
    """
    steps = tuple(path.split("."))
    forward = inspect.unwrap(type(module).forward)
    runs, _ = _read(forward) if inspect.isfunction(forward) else (frozenset(), None)
    return any(len(p) >= len(steps) + inside and _fits(steps, p[: len(steps)]) for p in runs)


def forward_gives_away(module: nn.Module, path: str) -> bool:
    """Whether the forward of a module's class gives what the part at a path lies in to a function that it is given."""
    steps = tuple(path.split("."))
    forward = inspect.unwrap(type(module).forward)
    given = _given_away(forward) if inspect.isfunction(forward) else frozenset()
    return any(_fits(steps[: len(p)], p) for p in given)


@functools.lru_cache(maxsize=4096)
def _given_away(method: Any) -> frozenset[Pattern]:
    try:
        own, *others = inspect.signature(method).parameters
    except ValueError:
        return frozenset()
    reader = _Reader(own)
    tree = _tree(method)
    reader.visit(tree)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", None) in others]
    patterns = (reader.pattern_of(argument) for call in calls for argument in call.args)
    return frozenset(pattern for pattern in patterns if pattern is not None)


def _exists(module: nn.Module, pattern: Pattern) -> bool:
    """Whether a pattern leads to a part."""
    return bool(_parts(module, pattern))


def _parts(module: nn.Module, pattern: Pattern) -> list[nn.Module]:
    found = [module]
    for step in pattern:
        found = [c for m in found for name, c in m._modules.items() if c is not None and step in ("*", name)]
    return found


def _fits(steps: Pattern, pattern: Pattern) -> bool:
    return len(steps) == len(pattern) and all(p in ("*", s) for s, p in zip(steps, pattern, strict=True))


@functools.lru_cache(maxsize=4096)
def _read(method: Any) -> tuple[frozenset[Pattern], frozenset[str]]:
    """Patterns of what a method calls, and the names of all attributes of ``self`` that it reads."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        own = next(iter(inspect.signature(method).parameters))
    except (OSError, TypeError, SyntaxError, ValueError, StopIteration):
        return frozenset(), frozenset()
    reader = _Reader(own)
    reader.visit(tree)
    reader.visit(tree)  # names that are bound behind their first use, in loops
    return frozenset(reader.runs), frozenset(reader.reads - reader.stores)


class _Reader(ast.NodeVisitor):
    """Follows names and attributes from ``self`` to calls."""

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
        """The path from ``self`` that an expression reads, once the code was visited."""
        return self._pattern(node)

    def _bind(self, target: ast.expr, source: ast.expr) -> None:
        """Names of a loop stand for the elements of what it goes through."""
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
        """The path from ``self`` that an expression reads."""
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
