"""``create_model(pretrained=…)``: weights from timm, torchvision, the hub and files; downloads alone are left out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import unbranch as ub
from tests.models.zoo_rows import ROWS, tensor_of
from tests.networks import randomised
from unbranch.errors import InputError
from unbranch.provenance import provenance_of


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """timm makes known weights where it would fetch some; what it made, by name."""
    made: dict[str, nn.Module] = {}
    original = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = original(name, pretrained=False, **options)
        if pretrained:
            made[name] = randomised(network).train()
        return network

    monkeypatch.setattr(timm, "create_model", create)
    return made


@pytest.mark.parametrize("pretrained", ["timm", True])
def test_weights_of_timm_go_into_our_network(offline: dict[str, nn.Module], pretrained: Any) -> None:
    x = torch.randn(1, 3, 64, 48)
    network = ub.create_model("RepGhostNet_0_5x", pretrained=pretrained).eval()
    theirs = offline["repghostnet_050"].eval()
    assert torch.allclose(network(x), theirs(x), atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = ub.create_model("repghostnet_050", features_only=True, pretrained=pretrained).eval()
        bare = ub.create_model("repghostnet_050", 0, pretrained=pretrained).eval()
    assert torch.equal(bare.forward_features(x), network.forward_features(x))
    assert torch.equal(backbone(x)[2], ub.models.FeatureExtractor(network, (2,))(x)[0])


def test_weights_go_into_networks_of_other_classes_and_channels_with_a_word(offline: dict[str, nn.Module]) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        network = ub.create_model("repghostnet_050", num_classes=7, in_channels=1, pretrained="timm").eval()
    said = " ".join(str(one.message) for one in told)
    assert "head.fc.weight" in said
    assert "keep their values" in said
    assert "to another number of input channels" in said
    x = torch.randn(1, 1, 64, 48)
    full = ub.create_model("repghostnet_050", pretrained="timm").eval()
    assert torch.allclose(network.forward_features(x), full.forward_features(x.repeat(1, 3, 1, 1)), atol=1e-4)


@pytest.mark.parametrize("pretrained", ["timm", True])
def test_networks_of_timm_fetch_their_own_weights(offline: dict[str, nn.Module], pretrained: Any) -> None:
    network = ub.create_model("timm:test_resnet", num_classes=3, pretrained=pretrained)
    assert network is offline["test_resnet"]
    assert "pretrained" not in provenance_of(network).arguments
    ub.create_model("timm:test_vit", pretrained=False)
    assert list(offline) == ["test_resnet"]


def test_networks_of_torchvision_fetch_their_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    original = torchvision.models.get_model

    def get_model(name: str, weights: Any = None, **options: Any) -> nn.Module:
        asked.append(weights)
        return original(name, **options)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    ub.create_model("torchvision:mnasnet0_5", pretrained=True)
    ub.create_model("torchvision:mnasnet0_5")
    assert asked == ["DEFAULT", None]


@pytest.mark.parametrize("name", ["repvgg_b1g2", "resnet18", "repmlpnet_t224", "replknet_31b"])
def test_weights_that_timm_has_not_are_refused_before_the_network_is_filled(name: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=f"timm has no weights for {name}: name a file"):
        ub.create_model(name, pretrained="timm")


def test_a_download_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(InputError, match="timm's weights of repghostnet_050 can't be had: OSError: no route"):
        ub.create_model("repghostnet_050", pretrained=True)
    with pytest.raises(InputError, match="me/net can't be had from the hub: OSError: no route"):
        ub.create_model("cifar_quick", pretrained="me/net")


class Hub:
    """Repositories in a folder, as the hub would have them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []

    def add(self, repository: str, file: str, state: dict[str, Tensor]) -> None:
        path = self.folder / repository / file
        path.parent.mkdir(parents=True)
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)

    def download(self, repository: str, file: str) -> str:
        self.asked.append((repository, file))
        path = self.folder / repository / file
        if not path.exists():
            raise huggingface_hub.errors.EntryNotFoundError(f"no {file} in {repository}")
        return os.fspath(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    return hub


NAMES: dict[str, Callable[[str], str]] = {"plain": lambda name: name, "hf-hub": lambda name: f"hf-hub:{name}"}


@pytest.mark.parametrize("spelled", NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("repository", ["me/net", "timm/some_net-1.5x.in1k"])
def test_weights_come_from_the_hub(hub: Hub, repository: str, file: str, spelled: Callable[[str], str]) -> None:
    source = randomised(ub.create_model("cifar_quick", block="acb"))
    hub.add(repository, file, source.state_dict())
    network = ub.create_model("cifar_quick", block="acb", pretrained=spelled(repository))
    assert hub.asked[-1] == (repository, file)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.eval()(x), source(x))


def test_weights_from_the_hub_go_into_networks_of_other_libraries(hub: Hub) -> None:
    source = randomised(timm.create_model("test_resnet"))
    hub.add("timm/test_resnet.r160_in1k", "model.safetensors", source.state_dict())
    network = ub.create_model("timm:test_resnet", pretrained="timm/test_resnet.r160_in1k").eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(network(x), source(x))


def test_a_repository_without_weights_is_told(hub: Hub) -> None:
    with pytest.raises(InputError, match=r"me/empty has none of model.safetensors, .* on the hub"):
        ub.create_model("cifar_quick", pretrained="me/empty")


@pytest.mark.parametrize("folder", [".", "weights"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = randomised(ROWS["resnet18"].make(features_only=True))
    path = Path(folder) / f"net{suffix}"
    path.parent.mkdir(exist_ok=True)
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    for given in (path, str(path), path.absolute()):
        network = ROWS["resnet18"].make(features_only=True, pretrained=given).eval()
        x = ROWS["resnet18"].images()
        assert torch.equal(tensor_of(network(x)), tensor_of(source(x)))
    with pytest.raises(InputError, match=r"missing\.pth"):
        ROWS["resnet18"].make(pretrained=f"weights/missing{suffix.replace('.safetensors', '.pth')}")
    assert not hub.asked


@pytest.mark.parametrize("wrong", [3, ["timm"], 1.5])
def test_weights_of_no_known_kind_are_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="`pretrained` must be 'timm', an id on the Hugging Face hub or a file, got"):
        ub.create_model("cifar_quick", pretrained=wrong)


class Location:
    """A path of a class of its own, as cloud libraries have them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_paths_are_anything_with_fspath_and_checkpoint_path_is_another_word(tmp_path: Path) -> None:
    source = randomised(ub.create_model("cifar_quick"))
    place = Location(tmp_path / "a.safetensors")
    ub.save(source, place)
    x = torch.randn(2, 3, 32, 32)
    for network in (
        ub.load(place),
        ub.create_model("cifar_quick", pretrained=place).eval(),
        ub.create_model("cifar_quick", checkpoint_path=place).eval(),
    ):
        assert torch.equal(network(x), source(x))
    fresh = ub.create_model("cifar_quick").eval()
    assert ub.load_checkpoint(fresh, place).layout == "unbranch"
    assert torch.equal(fresh(x), source(x))
