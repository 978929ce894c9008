"""Old names, old positional arguments, and files of version 0.1 keep working."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unbranch as ub
from unbranch import models, weights
from unbranch.models import backbone, classifier, features, input_spec, stage
from unbranch.provenance import provenance_of
from unbranch.weights import LoadResult

FOLDER = Path(__file__).parent / "version_0_1"
PICKLES = sorted(FOLDER.glob("*.pt"))
FILES = sorted(FOLDER.glob("*.safetensors"))

NAMES: dict[tuple[str, str], object] = {
    ("unbranch.models", "ENTRIES"): models.MODELS,
    ("unbranch.models", "Entry"): models.ModelEntry,
    ("unbranch.models", "Loaded"): weights.LoadResult,
    ("unbranch.models", "Manifest"): weights.Manifest,
    ("unbranch.models", "create"): ub.create_model,
    ("unbranch.models", "create_model"): ub.create_model,
    ("unbranch.models", "load"): ub.load,
    ("unbranch.models", "load_checkpoint"): ub.load_checkpoint,
    ("unbranch.models", "load_weights"): weights.load_weights,
    ("unbranch.models", "read_manifest"): weights.read_manifest,
    ("unbranch.models", "read_weights"): weights.read_weights,
    ("unbranch.models", "save"): ub.save,
    ("unbranch.models", "tells_its_network"): weights.is_self_describing,
    ("unbranch.models", "to_official"): ub.to_official,
    ("unbranch.models.images", "Takes"): input_spec.InputSpec,
    ("unbranch.models.network", "FeatureInfo"): backbone.FeatureInfo,
    ("unbranch.models.network", "Features"): features.FeatureExtractor,
    ("unbranch.models.network", "Head"): classifier.Head,
    ("unbranch.models.network", "Level"): backbone.FeatureLevel,
    ("unbranch.models.network", "Network"): classifier.Classifier,
    ("unbranch.models.network", "Stage"): stage.Stage,
    ("unbranch.models.network", "Trunk"): backbone.Backbone,
}


@pytest.mark.parametrize(("where", "name"), NAMES, ids=lambda part: part)
def test_old_name_gives_the_new_object(where: str, name: str) -> None:
    module = importlib.import_module(where)
    with pytest.warns(DeprecationWarning, match=f"`{where}.{name}` is deprecated"):
        assert getattr(module, name) is NAMES[where, name]


OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "repvgg": ("repvgg_a0", {"widths": [0.25, 0.125]}, {"width_multipliers": [0.25, 0.125]}),
    "qarepvgg": ("qarepvgg_a0", {"widths": [0.25, 0.125]}, {"width_multipliers": [0.25, 0.125]}),
    "mobileone": ("mobileone_s0", {"widths": [0.125] * 4}, {"width_multipliers": [0.125] * 4}),
    "resnet": ("resnet8_cifar", {"widths": [4] * 10}, {"pruned_widths": [4] * 10}),
    "mobilenet": ("mobilenet_v1", {"widths": [4] * 27}, {"pruned_widths": [4] * 27}),
    "vgg": ("cifar_quick", {"widths": [4] * 3, "smallest": 31}, {"pruned_widths": [4] * 3, "min_size": 31}),
}


@pytest.mark.parametrize(("name", "old", "new"), OPTIONS.values(), ids=OPTIONS.keys())
def test_old_option_of_a_network_becomes_the_new_one(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    with torch.device("meta"):
        with pytest.warns(DeprecationWarning, match=f"of {name} is deprecated, use"):
            made = ub.create_model(name, **old)
        assert provenance_of(made).arguments == provenance_of(ub.create_model(name, **new)).arguments == new


def test_old_argument_is_accepted_by_keyword() -> None:
    model = ub.create_model("cifar_quick")
    for call in (
        lambda: ub.to_official(network=model),
        lambda: models.input_size(network=model),
        lambda: models.example_input(network=model),
        lambda: ub.load_checkpoint(network=model, source=ub.to_official(model)),
    ):
        with pytest.warns(DeprecationWarning, match="`network` of .* is deprecated, use `model`"):
            call()


def test_old_argument_of_save_is_accepted_by_keyword(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="use `model`"):
        ub.save(network=nn.Linear(2, 2), path=tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").is_file()


def test_old_positional_argument_of_load_is_accepted() -> None:
    with pytest.warns(DeprecationWarning, match=r"load\(…, device=…\)"):
        model = ub.load(FOLDER / "cifar_quick.safetensors", None, "cpu")
    assert next(model.parameters()).device.type == "cpu"
    with pytest.raises(TypeError, match="at most 3 positional"):
        ub.load(FOLDER / "cifar_quick.safetensors", None, "cpu", "more")


def test_old_attribute_reads_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="use `skipped`"):
        assert LoadResult("timm", skipped=("head.fc.bias",)).left == ("head.fc.bias",)


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.stem)
def test_old_pickle_of_a_whole_model_loads(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.load(path, weights_only=False)
    history = provenance_of(model)
    assert model.input_spec.in_channels == 3
    assert model.feature_info.channels()
    again = models.MODELS[str(history.network)].make(
        **models.MODELS[str(history.network)].current_options(history.arguments)
    )
    ub.load_checkpoint(again, model.state_dict())
    x = torch.randn(2, 3, 32, 40)
    for ours, theirs in zip(again.eval()(x), model(x), strict=True):
        assert torch.equal(ours, theirs)
    assert type(again) is type(model)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_old_file_loads_and_is_written_with_the_new_names(path: Path, tmp_path: Path) -> None:
    model = ub.load(path)
    ub.save(model, tmp_path / "new.safetensors")
    again = ub.load(tmp_path / "new.safetensors")
    x = torch.randn(2, 3, 32, 40)
    for ours, theirs in zip(again(x), model(x), strict=True):
        assert torch.equal(ours, theirs)
    manifest = weights.read_manifest(tmp_path / "new.safetensors")
    assert manifest is not None
    assert "widths" not in manifest.history.arguments


def test_there_are_old_files() -> None:
    assert (len(PICKLES), len(FILES)) == (2, 3)
