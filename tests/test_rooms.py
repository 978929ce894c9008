"""Imports between the rooms of src/unbranch go downwards only."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "unbranch"
# From the ground up; rooms of one line may not import each other.
FLOORS = (
    ("deprecation", "render"),
    ("errors",),
    ("channels_last", "extras", "files", "grids", "timing"),
    ("large_kernels",),
    ("provenance",),
    ("history",),
    ("algebra",),
    ("graph",),
    ("rules",),
    ("convert",),
    ("onnx",),
    ("blocks",),
    ("models",),
    ("weights",),
    ("factory",),
    ("expansion",),
    ("runtimes",),
    ("prune",),
    ("quantize",),
    ("train",),
    ("deploy",),
    ("display",),
    ("demo",),
    ("cli",),
)
# The same inside convert: the steps of a conversion in their order, between files that all use and those that use all.
STEPS = (
    ("formats", "lines", "reasons", "statistics"),
    ("report",),
    ("faults",),
    ("source",),
    ("trace",),
    ("passes",),
    ("interpret",),
    ("plan",),
    ("rewrite",),
    ("prove",),
    ("costs", "kernel", "provenance"),
    ("account",),
    ("trace_plan",),
    ("attempt",),
    ("conversion",),
    ("replay",),
)
STEP = {room: height for height, rooms in enumerate(STEPS) for room in rooms}
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FRONT = "unbranch"  # the package itself, which offers everything: only the command line may go through it
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    package = ["unbranch", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_imports_only_rooms_below_its_own(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room} has no place in the order of rooms"
    for name in imported(path):
        if name.split(".")[0] != FRONT:
            continue
        other = name.split(".")[1]
        if other not in FLOOR:
            assert room in ("cli", "demo"), f"{name} is imported through the front door"
        else:
            assert other == room or FLOOR[other] < FLOOR[room], f"{room} may not import {name}"


CONVERT = sorted(path for path in (PACKAGE / "convert").rglob("*.py") if path != PACKAGE / "convert" / "__init__.py")


@pytest.mark.parametrize("path", CONVERT, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_step_of_a_conversion_imports_only_steps_before_it(path: Path) -> None:
    step = path.relative_to(PACKAGE).parts[1].removesuffix(".py")
    assert step in STEP, f"{step} has no place in the order of convert"
    for name in imported(path):
        if name.startswith(f"{FRONT}.convert."):
            other = name.split(".")[2]
            assert other in STEP, f"{name} is imported through convert itself"
            assert other == step or STEP[other] < STEP[step], f"convert/{step} may not import {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "algebra").glob("*.py")), ids=lambda path: path.name)
def test_algebra_imports_torch_and_nothing_else(path: Path) -> None:
    allowed = {"torch", FRONT, *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imported(path)} <= allowed


def test_relative_imports_are_seen(tmp_path: Path) -> None:
    upwards = [name for name in imported(PACKAGE / "algebra" / "laws.py") if name.startswith("unbranch.")]
    assert upwards
    assert {name.split(".")[1] for name in upwards} <= {"algebra", "errors"}
