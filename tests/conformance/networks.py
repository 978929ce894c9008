"""The published networks by their names in the fixtures, made of ours."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tests.conformance.official import FOLDER
from unbranch.models import create
from unbranch.models.forms import shapes_between
from unbranch.models.recognise import best_reading, layouts_for, pruned_widths
from unbranch.models.registry import ENTRIES, resolve
from unbranch.provenance import provenance_of

BLOCKS = {"ACB": "acb", "DBB": "dbb", "base": None, "compactor": "compactor"}
MARKS = (
    "backbone", "norm", "ERF", "22K", "21K", "1K", "deep", "fused", "train", "deploy", "base", "pruned",
    "224", "256", "320", "384", "448", "512",
)  # fmt: skip
FORMS = ("train", "deploy", "base")


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
    made, marks = described(rest), []
    while made is None:  # what follows a name says how it is used
        rest, _, mark = rest.rpartition("-")
        assert mark in MARKS, f"{model} is no published network that is known here"
        marks, made = [*marks, mark], described(rest)
    name, options = made
    classifiers = [tuple(shape) for key, shape in shapes.items() if len(shape) == 2 and "_aux" not in key]
    options |= {"block": block} if block else {}
    if "backbone" in marks:
        options |= {"features_only": True, "feature_norms": "norm" in marks}
    elif classifiers:
        options["num_classes"] = classifiers[-1][0]
    deep = "deep" in marks and name.startswith("replknet")
    return Network(name, options, "replknet-deep-fused" if deep else layout, "ERF" in marks)


# Spellings of relatives that have no name of their own: a pattern, and our network and options by what it finds.
RELATIVES: tuple[tuple[str, Callable[[re.Match[str]], tuple[str, dict[str, Any]]]], ...] = (
    (r"(?:sres|ResNet-)(101|152)", lambda m: ("resnet50", {"depths": DEEP[m[1]]})),
    (r"sr[ch](\d+)", lambda m: ("resnet56_cifar", {"depths": [(int(m[1]) - 2) // 6] * 3})),
    (r"wrn[ch](\d+)plain", lambda m: ("wrn_16_8", {"depth": (int(m[1]) - 4) // 6})),
    (r"v[ch]", lambda _: ("vgg16_cifar", {})),
    (r"cfqkbn[ch]", lambda _: ("cifar_quick", {})),
    (
        r"repghostnet_(?:(repid|norep|wo)_)?(\d)_(\d+)x",
        lambda m: ("repghostnet_100", {"width": float(f"{m[2]}.{m[3]}"), **ABLATIONS[m[1]]}),
    ),
    (r"RepVGG-(.+)g(\d+)", lambda m: (f"repvgg_{m[1].lower()}", {"groups": int(m[2])})),
    (r"RepVGG-D2", lambda _: ("repvgg_d2se", {"squeeze_excite": None})),
    (r"RepMLPNet-([TBDL])(\d+)", lambda m: (f"repmlpnet_{m[1].lower()}256", {"size": int(m[2])})),
    (r"RepLKNet-(\d+)([BL]?)", lambda m: ("replknet_31l" if m[2] == "L" else "replknet_31b", kernels(int(m[1])))),
)
DEEP = {"101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}
ABLATIONS = {
    None: {}, "repid": {"fusion": "identity"}, "norep": {"fusion": "none"}, "wo": {"shortcut": False},
}  # fmt: skip


def kernels(side: int) -> dict[str, Any]:
    return {"kernels": [side] * 4, "small_kernel": 5 if side > 5 else None}


def described(spelling: str) -> tuple[str, dict[str, Any]] | None:
    """Our name and options for a published spelling, None for one that isn't known."""
    if name := resolve(spelling):
        return name, {}
    for pattern, describe in RELATIVES:
        if found := re.fullmatch(pattern, spelling):
            name, options = describe(found)
            return (name, options) if name in ENTRIES else None
    return None


def narrowed(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """The network as narrow as the published one, if that was pruned."""
    with torch.device("meta"):
        whole = network.make()
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    reading = best_reading(state, layouts_for(provenance_of(whole)), shapes_between(whole))
    widths = pruned_widths(whole, reading.named)
    return replace(network, options={**network.options, "widths": widths}) if widths else network


@functools.cache
def manifests() -> dict[str, Path]:
    """Every file that holds the parameters of a published network, by the network; of several, by file too."""
    found: dict[str, Path] = {}
    for path in sorted(FOLDER.rglob("*.json")):
        content = json_in(path)
        if isinstance(content, dict) and "model" in content and any(content.get(form) for form in FORMS):
            name = content["model"]
            found[name if name not in found else f"{name} in {path.relative_to(FOLDER)}"] = path
    return found


def json_in(path: Path) -> Any:
    """What a file holds, None if it is no JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def metadata_of(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, nothing if it is none."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def shapes_in(manifest: Mapping[str, Any], form: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, (shape, _) in (manifest.get(form) or {}).items()}


@functools.cache
def recipe() -> Any:
    """The module that fills a state by the names and shapes of its tensors; skips a test where there is none."""
    usual = Path(__file__).parents[3] / "shared/official/recipe.py"
    path = next((path for path in (*sorted(FOLDER.rglob("recipe.py")), usual) if path.is_file()), None)
    if path is None:
        pytest.skip(f"no recipe.py in {FOLDER}")
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights from the recipe, float64."""
    return {key: torch.from_numpy(recipe().tensor(key, shape).copy()) for key, shape in shapes.items()}
