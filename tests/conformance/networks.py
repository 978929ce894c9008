"""The published networks by their names in the fixtures, made of ours."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.conformance.official import FOLDER
from unbranch.models import create
from unbranch.models.registry import resolve

BLOCKS = {"ACB": "acb", "DBB": "dbb", "base": None, "compactor": "compactor"}
MARKS = ("backbone", "norm", "ERF", "22K", "21K", "1K", "deep", "fused", "224", "256", "320", "384")


@dataclass(frozen=True)
class Network:
    """How to make a published network: our name and options, and whose names its parameters have."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    layout: str | None = None
    features: bool = False

    def make(self, **changes: Any) -> nn.Module:
        return create(self.name, **{**self.options, **changes}).eval()

    def run(self, network: nn.Module) -> Callable[[Tensor], Any]:
        """All that the published network computes, of training form as well: logits, auxiliary ones, features."""
        if self.features:
            return network.forward_features
        return network.forward_all if len(getattr(network, "auxiliary", ())) else network


def network_of(model: str, shapes: Mapping[str, Any]) -> Network:
    """The network that a fixture calls ``model``; ``shapes`` of its parameters tell the number of classes."""
    block, layout, rest = None, None, model
    if found := re.fullmatch(r"(ACNet|ResRep)-(.+)", model):
        layout, rest = found[1].lower(), found[2]
        block = "acb" if layout == "acnet" else "compactor"
    elif found := re.fullmatch(r"DBBNet-(.+)-(\w+)", model):
        layout, rest, block = "dbb", found[1], BLOCKS[found[2]]
    name = resolve(rest)
    marks: list[str] = []
    while name is None:  # what follows a name says how it is used
        rest, _, mark = rest.rpartition("-")
        assert mark in MARKS, f"{model} is no published network that is known here"
        marks, name = [*marks, mark], resolve(rest)
    classifiers = [tuple(shape) for key, shape in shapes.items() if len(shape) == 2 and "_aux" not in key]
    options: dict[str, Any] = {"block": block} if block else {}
    if "backbone" in marks:
        options |= {"features_only": True, "feature_norms": "norm" in marks}
    elif classifiers:
        options["num_classes"] = classifiers[-1][0]
    return Network(name, options, layout, "ERF" in marks)


@functools.cache
def manifests() -> dict[str, Path]:
    """Every file that holds the parameters of a published network."""
    found = {}
    for path in sorted(FOLDER.rglob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and "model" in content and ("train" in content or "deploy" in content):
            found[path.stem] = path
    return found


def shapes_in(manifest: Mapping[str, Any], form: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, (shape, _) in (manifest.get(form) or {}).items()}


@functools.cache
def recipe() -> Any:
    """The module that fills a state by the names and shapes of its tensors."""
    path = next(iter(sorted(FOLDER.rglob("recipe.py"))), Path(__file__).parents[3] / "shared/official/recipe.py")
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights from the recipe, float64."""
    return {key: torch.from_numpy(recipe().tensor(key, shape).copy()) for key, shape in shapes.items()}
