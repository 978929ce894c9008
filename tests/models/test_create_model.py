"""``create_model`` and ``list_models``: names in all their spellings, and options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import unbranch as ub
from tests.conformance.official import FOLDER
from unbranch.errors import InputError
from unbranch.models.registry import resolve
from unbranch.provenance import provenance_of

# --- names ------------------------------------------------------------------------------------------

SPELLINGS = {
    "RepVGG-A0": "repvgg_a0",
    "RepVGG-B1g4": "repvgg_b1g4",
    "RepVGG-D2se": "repvgg_d2se",
    "RepVGGplus-L2pse": "repvggplus_l2pse",
    "QARepVGG-A0": "qarepvgg_a0",
    "RepMLPNet-B256": "repmlpnet_b256",
    "RepLKNet-31B": "replknet_31b",
    "RepLKNet31L": "replknet_31l",
    "RepLKNet-XL": "replknet_xl",
    "create_RepLKNetXL": "replknet_xl",
    "RepLKNet-13": "replknet_13",
    "repghostnet_0_5x": "repghostnet_050",
    "repghostnet_1_0x": "repghostnet_100",
    "repghostnet_1_11x": "repghostnet_111",
    "repghostnet_repid_0_5x": "repghostnet_050_identity",
    "repghostnet_norep_0_5x": "repghostnet_050_none",
    "repghostnet_wo_0_5x": "repghostnet_050_noshortcut",
    "sres18": "resnet18",
    "ResNet-50": "resnet50",
    "src56": "resnet56_cifar",
    "src110": "resnet110_cifar",
    "cfqkbnc": "cifar_quick",
    "vc": "vgg16_cifar",
    "wrnc16plain": "wrn_16_8",
    "smi1": "mobilenet_v1",
    "MobileNet": "mobilenet_v1",
    "AlexNet": "alexnet",
}


@pytest.mark.parametrize(("spelling", "name"), SPELLINGS.items())
def test_published_spellings_are_names(spelling: str, name: str) -> None:
    assert resolve(spelling) == resolve(spelling.lower()) == name
    assert ub.list_models(spelling) == [name]


def test_a_network_knows_itself_by_its_own_name_whatever_it_was_called() -> None:
    with torch.device("meta"):
        network = ub.create_model("RepGhostNet-1.0x".replace(".", "_"), num_classes=7, features_only=True)
    made = provenance_of(network)
    assert (made.network, made.arguments) == ("repghostnet_100", {"num_classes": 7, "features_only": True})
    assert made.input_size == (3, 224, 224)


@pytest.mark.skipif(not FOLDER.exists(), reason=f"no manifests in {FOLDER}: set UNBRANCH_OFFICIAL")
def test_every_published_network_has_a_name() -> None:
    models = {json.loads(path.read_text()).get("model") for path in FOLDER.rglob("manifests/*.json")} - {None}
    assert models
    marks = ("ACNet-", "DBBNet-", "ResRep-")
    for model in models:
        bare = next((model.removeprefix(mark) for mark in marks if model.startswith(mark)), model)
        parts = bare.split("-")
        assert any(resolve("-".join(parts[:n])) for n in range(1, len(parts) + 1)), model


def test_patterns_choose_among_ours_and_among_others() -> None:
    ours = ub.list_models()
    assert len(ours) == len(set(ours)) > 50
    assert ub.list_models("repvgg_a?") == ub.list_models("RepVGG_A?") == ["repvgg_a0", "repvgg_a1", "repvgg_a2"]
    assert ub.list_models(["resnet???_cifar", "alexnet"]) == ["resnet110_cifar", "alexnet"]
    assert ub.list_models("nothing*") == []
    assert ub.list_models("timm:repvgg_a?") == ["timm:repvgg_a0", "timm:repvgg_a1", "timm:repvgg_a2"]
    assert all(timm.is_model(name.removeprefix("timm:")) for name in ub.list_models("timm:repghost*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("repvgg_a00", "names no network: .*did you mean repvgg_a0"),
        ("RepGhostNet-050x", "did you mean repghostnet_"),
        ("resnet101", "; there is timm:resnet101 and torchvision:resnet101$"),
        ("fastvit_t8", "; there is timm:fastvit_t8$"),
        ("zzzz", "for example repvgg_a0$"),
        ("", "names no network"),
        (3, "'3' names no network"),
        ("timm:repvgg_a00", "timm has no network 'repvgg_a00'; did you mean repvgg_a0"),
    ],
)
def test_names_that_there_are_not_get_near_ones(name: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ub.create_model(name)


# --- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"drop_path": 0.1}, "resnet18 has no option 'drop_path'; it has .*; did you mean drop_path_rate"),
        ("resnet18", {"feature_only": True}, "; did you mean features_only"),
        (
            "repghostnet_050",
            {"block_options": {}},
            "has no option 'block_options'; it has width, fusion, shortcut, num_cl",
        ),
        ("resnet18", {"num_classes": -1}, "`num_classes` must be an integer ≥ 0, got -1"),
        ("resnet18", {"num_classes": True}, "`num_classes` must be an integer ≥ 0, got"),
        ("resnet18", {"num_classes": 2.0}, "`num_classes` must be an integer ≥ 0, got"),
        ("resnet18", {"in_channels": 0}, "`in_channels` must be an integer ≥ 1, got 0"),
        ("timm:resnet18", {"drop_pth": 1}, "building timm:resnet18 with .* failed: TypeError"),
        (
            "timm:resnet18",
            {"block": "acb"},
            "must be None for timm:resnet18, got 'acb'; put blocks into it with unbranch.expand",
        ),
        ("torchvision:resnet18", {"in_channels": 1}, "torchvision's networks take 3 channels, got in_channels=1"),
    ],
)
def test_options_that_there_are_not_are_told_with_those_that_there_are(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ub.create_model(name, **options)


def test_defaults_are_those_that_a_network_was_published_with() -> None:
    with torch.device("meta"):
        assert [ub.create_model(name).num_classes for name in ("repvgg_a0", "resnet56_cifar")] == [1000, 10]
        assert ub.create_model("alexnet").head.dropout1.p == 0.5
        assert ub.create_model("repghostnet_050").head.dropout.p == 0.2
    assert ub.create_model("cifar_quick").training


def test_networks_of_timm_take_the_same_words() -> None:
    classifier = ub.create_model("timm:test_resnet", num_classes=4, in_channels=1)
    assert classifier(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    assert provenance_of(classifier).network == "timm:test_resnet"
    backbone = ub.create_model("timm:test_resnet", features_only=True, out_indices=(1, 2))
    maps = backbone(torch.zeros(1, 3, 64, 32))
    assert [y.shape[1] for y in maps] == backbone.feature_info.channels()
    bare = ub.create_model("timm:test_resnet", 0)
    assert bare(torch.zeros(2, 3, 32, 32)).shape == (2, bare.num_features)


def test_networks_of_torchvision_and_of_ones_own_take_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ub.create_model("torchvision:mnasnet0_5", 3)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    (tmp_path / "my_own_nets.py").write_text(
        "from torch import nn\n"
        "def make(num_classes=2, in_channels=3): return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))\n"
        "def named(block): return nn.Sequential(nn.Conv2d(3, 4, 3), getattr(nn, block)(4))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert ub.create_model("my_own_nets:make", num_classes=6, in_channels=1)(torch.zeros(1, 1, 4, 4)).shape == (1, 6)
    assert isinstance(ub.create_model("my_own_nets:named", block="BatchNorm2d")[1], torch.nn.BatchNorm2d)
    with pytest.raises(InputError, match="my_own_nets:make has no weights of its own: name a file"):
        ub.create_model("my_own_nets:make", pretrained=True)


def test_words_of_timm_are_taken() -> None:
    assert ub.create_model("cifar_quick", False, in_chans=1, num_classes=3)(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    for network in (ub.create_model("cifar_quick", 7), ub.create_model("cifar_quick", None, num_classes=7)):
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_arguments_in_their_old_order_are_taken() -> None:
    with pytest.warns(DeprecationWarning, match="name the arguments"):
        network = ub.create_model("cifar_quick", 7, 1, "acb")
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert provenance_of(network).arguments == {"num_classes": 7, "in_channels": 1, "block": "acb"}
