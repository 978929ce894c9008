"""A network's name leads to the network or to one sentence that helps."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from unbranch.errors import InputError, MissingPackageError
from unbranch.factory import create_model
from unbranch.models import build, example_input, input_size
from unbranch.provenance import provenance_of, set_provenance

MODULE = """
from torch import nn
NUMBER = 3
NET = nn.Linear(2, 2)
def make(width=4): return nn.Linear(2, width)
def make_text(): return "net"
def make_ours():
    from unbranch.factory import create_model
    return create_model("resnet8_cifar", width=4)
class Nested:
    @staticmethod
    def make(): return nn.Linear(2, 1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "some_networks.py").write_text(MODULE)
    (tmp_path / "broken_networks.py").write_text("import not_there_either\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("some_networks", "broken_networks"):
        sys.modules.pop(name, None)


def test_factory_on_the_path_gets_its_options(folder: Path) -> None:
    path = list(sys.path)
    assert create_model("some_networks:make", width=7).out_features == 7
    assert create_model("some_networks:Nested.make").out_features == 1
    assert sys.path == path


def test_timm_network_gets_its_options_and_tells_its_input() -> None:
    network = create_model("timm:test_vit", num_classes=5)
    assert network.num_classes == 5
    assert input_size(network) == (3, 160, 160)


def test_torchvision_classifier_and_detector_are_built_without_downloads() -> None:
    classifier = create_model("torchvision:mnasnet0_5", num_classes=3)
    assert classifier(example_input(classifier, (3, 32, 32), batch=2)).shape == (2, 3)
    detector = create_model("torchvision:ssdlite320_mobilenet_v3_large", num_classes=3).eval()
    (images,) = example_input(detector, (3, 64, 64), batch=2)
    assert [image.shape for image in images] == [(3, 64, 64)] * 2


def test_a_network_of_ours_knows_its_name_however_it_was_called() -> None:
    for name in ("resnet8_cifar", "ResNet8-CIFAR", "resnet8"):
        made = provenance_of(create_model(name, width=4))
        assert (made.network, made.arguments) == ("resnet8_cifar", {"width": 4})


def test_a_factory_that_calls_another_by_name_leaves_it_its_name(folder: Path) -> None:
    assert provenance_of(create_model("some_networks:make_ours")).network == "resnet8_cifar"
    assert provenance_of(create_model("some_networks:make", width=2)).network == "some_networks:make"


def test_history_leaves_out_where_weights_came_from(folder: Path) -> None:
    assert provenance_of(create_model("torchvision:mnasnet0_5", weights=None, num_classes=3)).arguments == {
        "num_classes": 3
    }


def test_a_network_with_arguments_that_no_file_can_hold_has_no_name() -> None:
    made = provenance_of(create_model("timm:test_resnet", act_layer=nn.SiLU))
    assert (made.network, made.arguments, made.source_class) == (None, {}, "timm.models.resnet.ResNet")


def test_input_size_is_that_of_the_history_first() -> None:
    network = create_model("timm:test_vit")
    set_provenance(network, replace(provenance_of(network), input_size=(3, 64, 96)))
    assert input_size(network) == (3, 64, 96)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("repvgg_a00", "names no network: write timm:NAME.*did you mean repvgg_a0"),
        ("timm:", "names no network"),
        ("timm:repvgg_a00", "did you mean repvgg_a0"),
        ("torchvision:resnet19", "did you mean resnet18"),
        ("torchvision:zzzzzzzz", "torchvision has no network 'zzzzzzzz'$"),
        ("no_such_package.nets:make", "no module 'no_such_package': is it installed"),
        ("broken_networks:make", "no module 'not_there_either', which broken_networks imports"),
        ("some_networks:mke", "has no 'mke'; did you mean make"),
        ("some_networks:NUMBER", "is int, not a factory"),
        ("some_networks:NET", "is a network, not a factory"),
        ("some_networks:make_text", "made a str, not a torch.nn.Module"),
    ],
)
def test_wrong_name_gets_one_helpful_sentence(folder: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model(name)


def test_option_that_does_not_fit_is_told(folder: Path) -> None:
    with pytest.raises(InputError, match=r"building some_networks:make with \{'depth': 3\} failed: TypeError"):
        create_model("some_networks:make", depth=3)


def test_missing_library_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"timm isn't installed: pip install 'unbranch\[vision\]'"):
        create_model("timm:resnet18")


def test_input_that_the_network_can_not_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"doesn't take an input of size \(3, 2\)"):
        example_input(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), (3, 2))


def test_example_input_leaves_the_network_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    example_input(network, (3, 4, 4))
    assert network.training
    assert network[1].num_batches_tracked == 0
    assert torch.equal(network[1].running_mean, torch.zeros(2))


def test_nothing_is_suggested_for_nonsense() -> None:
    assert build.nearest("qqqq", ["resnet18"]) == ""
