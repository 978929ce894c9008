"""What can't be saved, loaded or believed is refused in one line that says what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.models.own import MyNet, rewritten
from unbranch.blocks import ACB, RepVGG
from unbranch.errors import InputError
from unbranch.factory import create_model
from unbranch.provenance import Provenance, set_provenance


def test_a_file_that_does_not_fit_lists_everything_that_does_not(tmp_path: Path) -> None:
    ub.save(nn.Sequential(ACB(3, 4, 3), nn.Linear(2, 3)), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a.safetensors doesn't fit the model: .* missing .* unexpected .* wrong"):
        ub.load(tmp_path / "a.safetensors", into=nn.Sequential(RepVGG(3, 4, 3), nn.Linear(2, 4)))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"network": None}, r"holds a network of your own code \(resnet8_cifar\); pass one as into="),
    ({"network": "my.models:make"}, r"own code my.models:make, which no file runs; pass into=my.models.make\(…\)"),
    ({"network": "os:system", "arguments": {"command": "touch hacked"}}, "which no file runs"),
    ({"network": "unbranch.models.resnet:resnet"}, "which no file runs"),
    ({"network": "timm:../../x"}, "which no file runs"),
    ({"network": "timm:hf-hub:someone/net"}, "which no file runs"),
    ({"network": "timm:local-dir:."}, "which no file runs"),
    ({"network": "timm:nothing_of_the_sort"}, "can't be loaded: timm has no network"),
    ({"network": "timm:resnet18", "arguments": {"pretrained": True}}, "asks for pretrained, which no file may"),
    ({"network": "timm:resnet18", "arguments": {"pretrained_cfg": {"file": "a"}}}, "asks for pretrained_cfg"),
    ({"network": "timm:resnet18", "arguments": {"checkpoint_path": "a.pth"}}, "asks for checkpoint_path"),
    ({"network": "timm:resnet18", "arguments": {"scriptable": True}}, "asks for scriptable"),
    ({"network": "torchvision:resnet18", "arguments": {"weights": "DEFAULT"}}, "asks for weights"),
    ({"arguments": {"block": "../../etc/passwd"}}, "asks for ../../etc/passwd, which no file may"),
    ({"arguments": {"num_classes": 10**12}}, "arguments add up to more than"),
    ({"arguments": {"num_classes": 1e999}}, "holds Infinity, which is no JSON"),
    ({"arguments": {"width": 4096}}, r"asks for a network of \d+ numbers and holds only"),
    ({"network": "timm:convnext_xxlarge", "arguments": {}}, r"asks for a network of \d+ numbers and holds only"),
    ({"network": "timm:resnet18", "arguments": {"layers": [100000, 100000]}}, "asks for a network of more than"),
    ({"network": "timm:vit_tiny_patch16_224", "arguments": {"depth": 100000}}, "asks for a network of more than"),
    ({"arguments": {"depth": 3}}, "has no option 'depth'"),
    ({"arguments": {"width": 8}}, "doesn't fit the model: .* wrong shape"),
    ({"format": "unbranch-2"}, "its format is unbranch-2 instead of unbranch-1"),
    ({"network": 3}, "its network is missing or of another type"),
    ({"arguments": [1]}, "its arguments is missing or of another type"),
    ({"steps": [1]}, "its steps aren't a list of at most 16 objects"),
    ({"steps": [{"kind": "collapse"}] * 17}, "its steps aren't a list of at most 16 objects"),
    ({"input_size": [0]}, "its input_size isn't a list"),
    ({"arguments": {"a": [[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]}}, "nested more than 20 deep"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_a_file_may_not_ask_for_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.safetensors"
    ub.save(create_model("resnet8_cifar", width=4), path)
    rewritten(path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        ub.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_list_of_a_million_modules_is_not_built() -> None:
    from unbranch.weights.rebuild import _hollow

    with pytest.raises(InputError, match="more than 100 modules"), _hollow(100):
        nn.Sequential(*(nn.Sequential(nn.ReLU()) for _ in range(10**6)))


def test_a_file_without_a_name_needs_a_network(tmp_path: Path) -> None:
    torch.save(MyNet().state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a.pth can't be loaded: it doesn't say which network it holds; pass the"):
        ub.load(tmp_path / "a.pth")
    with pytest.raises(InputError, match="there is no file"):
        ub.load(tmp_path / "b.pth")


class WithState(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


class NoCopy(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("only one of me")


def test_what_can_not_be_saved_or_copied_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for network, message in (
        (WithState(2, 2), "WithState has state that isn't a dense tensor: _extra_state"),
        (nn.Linear(2, 2, device="meta"), "Linear has state that isn't a dense tensor: weight, bias"),
        (nn.ParameterList([torch.zeros(2, dtype=torch.complex128)]), "can't write"),
    ):
        with pytest.raises(InputError, match=message):
            ub.save(network, path)
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        ub.save(nn.Linear(2, 2), tmp_path / "a.pth")
    odd = nn.Linear(2, 2)
    set_provenance(odd, Provenance(arguments={"a": nn.ReLU}))
    with pytest.raises(InputError, match="can't be written as JSON"):
        ub.save(odd, path)
    assert not list(tmp_path.iterdir())
    ub.save(nn.Linear(2, 2), path)
    with pytest.raises(InputError, match="NoCopy can't be copied: only one of me"):
        ub.load(path, into=NoCopy(2, 2))
    with pytest.raises(InputError, match=r"expected a torch.nn.Module, got str"):
        ub.load(path, into="linear")


def test_an_existing_file_stays_where_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    ub.save(nn.Linear(2, 2), path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"can't write .*a.safetensors: No space left on device"):
        ub.save(nn.Linear(9, 9), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
