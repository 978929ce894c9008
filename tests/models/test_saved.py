"""Saved networks come back as they were: structure, weights, dtypes, sharing, and what the file says of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import unbranch as ub
from tests.models.own import IMAGES, MyNet, manifest_of, rewritten
from tests.networks import randomised
from unbranch import provenance
from unbranch.blocks import RepVGG
from unbranch.errors import InputError
from unbranch.factory import create_model
from unbranch.provenance import provenance_of, record_transform, register_replay


def assert_equal_files(first: Path, second: Path) -> None:
    assert first.read_bytes() == second.read_bytes()


# --- what comes back --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, "acb", "dbb", "repvgg"])
@pytest.mark.parametrize("collapsed", [False, True])
def test_a_network_by_name_comes_back_from_its_file_alone(tmp_path: Path, block: str | None, collapsed: bool) -> None:
    network = randomised(create_model("resnet8_cifar", block=block, in_channels=3, width=4))
    network = ub.collapse(network, IMAGES) if collapsed else network
    ub.save(network, tmp_path / "a.safetensors")
    again = ub.load(str(tmp_path / "a.safetensors"))
    assert not again.training
    assert torch.equal(again(IMAGES), network(IMAGES))
    assert provenance_of(again) == provenance_of(network)
    ub.save(again, tmp_path / "b.safetensors")
    assert_equal_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


@pytest.mark.sweep(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["timm:repghostnet_050", "timm:mobileone_s0", "timm:fastvit_t8", "timm:repvit_m1", "torchvision:resnet18"]
)
def test_collapsed_networks_of_other_libraries_come_back(tmp_path: Path, name: str) -> None:
    network = randomised(create_model(name, num_classes=5))
    plain = ub.collapse(network)
    ub.save(plain, tmp_path / "a.safetensors")
    again = ub.load(tmp_path / "a.safetensors")
    x = torch.randn(1, 3, 96, 64)
    assert torch.equal(again(x), plain(x))
    ub.save(again, tmp_path / "b.safetensors")
    assert_equal_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def odd_weights(network: nn.Module) -> nn.Module:
    return network.apply(lambda m: [p.data.fill_(float("nan")) for p in m.parameters(recurse=False)] and None)


INTO: dict[str, Callable[[], nn.Module]] = {
    "fresh": MyNet,
    "trained": lambda: randomised(MyNet(), seed=5),
    "training": lambda: MyNet().train(),
    "without numbers": lambda: odd_weights(MyNet()),
    "half": lambda: MyNet().half(),
    "wrapped": lambda: nn.DataParallel(MyNet()),
}


@pytest.mark.parametrize("into", INTO.values(), ids=INTO.keys())
@pytest.mark.parametrize("collapsed", [False, True])
def test_a_network_of_the_users_comes_back_into_one_of_its_class(
    tmp_path: Path, into: Callable[[], nn.Module], collapsed: bool
) -> None:
    network = randomised(MyNet())
    network = ub.collapse(network, IMAGES) if collapsed else network
    ub.save(network, tmp_path / "a.safetensors")
    given = into()
    before = {key: value.clone() for key, value in given.state_dict().items()}
    again = ub.load(tmp_path / "a.safetensors", into=given)
    assert torch.equal(again(IMAGES), network(IMAGES))
    assert all(torch.equal(value.nan_to_num(), before[key].nan_to_num()) for key, value in given.state_dict().items())
    assert not again.training
    ub.save(again, tmp_path / "b.safetensors")
    assert_equal_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_a_network_that_was_never_trained_comes_back(tmp_path: Path) -> None:
    """Its norms shift nothing, so more of it merges than of a trained one."""

    def make() -> nn.Sequential:
        first = nn.Conv2d(3, 4, 1)
        nn.init.zeros_(first.bias)
        return nn.Sequential(first, nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)).eval()

    plain = ub.collapse(make())
    ub.save(plain, tmp_path / "a.safetensors")
    assert torch.equal(ub.load(tmp_path / "a.safetensors", into=make())(IMAGES), plain(IMAGES))


def test_precision_of_every_tensor_is_kept(tmp_path: Path) -> None:
    network = randomised(MyNet()).half()
    network.norm.float()
    ub.save(network, tmp_path / "a.safetensors")
    again = ub.load(tmp_path / "a.safetensors", into=MyNet())
    assert {k: v.dtype for k, v in again.state_dict().items()} == {k: v.dtype for k, v in network.state_dict().items()}
    double = ub.collapse(randomised(MyNet()).double(), IMAGES.double())
    ub.save(double, tmp_path / "b.safetensors")
    again = ub.load(tmp_path / "b.safetensors", into=MyNet())
    assert again.scale.dtype == torch.float64  # no file holds it, and it goes with the others
    assert torch.equal(again(IMAGES.double()), double(IMAGES.double()))


def test_shared_tensors_are_shared_again(tmp_path: Path) -> None:
    ub.save(randomised(MyNet()).double(), tmp_path / "a.safetensors")
    again = ub.load(tmp_path / "a.safetensors", into=MyNet())
    assert again.first.weight is again.second.weight


def test_odd_values_and_empty_tensors_come_back(tmp_path: Path) -> None:
    network = nn.ParameterDict({"a": torch.tensor([float("nan"), float("inf"), -0.0]), "b": torch.zeros(0, 3)})
    network["c"] = nn.Parameter(torch.zeros(2, 2, dtype=torch.float8_e5m2), requires_grad=False)
    ub.save(network, tmp_path / "a.safetensors")
    again = ub.load(tmp_path / "a.safetensors", into=copy.deepcopy(network))
    ub.save(again, tmp_path / "b.safetensors")
    assert_equal_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_wrappers_are_taken_off(tmp_path: Path, wrap: Any) -> None:
    network = create_model("resnet8_cifar", width=4)
    ub.save(wrap(network), tmp_path / "a.safetensors")
    assert torch.equal(ub.load(tmp_path / "a.safetensors").stem.conv.weight, network.stem.conv.weight)


def test_history_travels_through_copies_and_pickles(tmp_path: Path) -> None:
    plain = ub.collapse(create_model("resnet8_cifar", block="acb", width=4))
    root = ub.collapse(randomised(MyNet()))
    for network in (plain, root):
        for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert provenance_of(again) == provenance_of(network)
    assert provenance_of(ub.collapse(plain)) == provenance_of(plain)  # nothing was left to merge


# --- weights of others ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.safetensors"])
def test_weights_of_others_are_loaded_into_a_copy(tmp_path: Path, name: str) -> None:
    trained, into = randomised(RepVGG(3, 3, 3, 1, 1)), RepVGG(3, 3, 3, 1, 1)
    state, before = trained.state_dict(), copy.deepcopy(into.state_dict())
    if name == "a.safetensors":
        save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / name)
    else:
        torch.save({"state_dict_ema": state}, tmp_path / name)
    again = ub.load(tmp_path / name, into=into)
    assert torch.equal(again(IMAGES), trained(IMAGES))
    assert all(torch.equal(value, before[key]) for key, value in into.state_dict().items())


def test_weights_of_others_keep_the_name_of_the_network(tmp_path: Path) -> None:
    torch.save(create_model("resnet8_cifar", width=4).state_dict(), tmp_path / "a.pth")
    again = ub.load(tmp_path / "a.pth", into=create_model("resnet8_cifar", width=4))
    ub.save(again, tmp_path / "a.safetensors")
    ub.load(tmp_path / "a.safetensors")


# --- what the file says -----------------------------------------------------------------------------


def test_the_manifest_is_small_and_tells_what_the_design_asks(tmp_path: Path) -> None:
    network = ub.collapse(randomised(create_model("resnet8_cifar", block="repvgg", in_channels=3, width=4)), IMAGES)
    ub.save(network, tmp_path / "a.safetensors")
    manifest = manifest_of(tmp_path / "a.safetensors")
    step = manifest.pop("steps")[0]
    assert manifest == {
        "format": "unbranch-1",
        "version": ub.__version__,
        "network": "resnet8_cifar",
        "arguments": {"width": 4, "block": "repvgg"},
        "made_by": "resnet8_cifar",
        "input_size": [3, 9, 7],
    }
    assert step["kind"] == "collapse"
    assert step["layers"][0] == ["stem.conv", "Conv2d padding=(1, 1)"]


def test_a_network_given_by_the_user_wins_over_the_name_in_the_file(tmp_path: Path) -> None:
    class Other(nn.Module):
        """The same tensors under the same names, and another function."""

        def __init__(self) -> None:
            super().__init__()
            made = create_model("resnet8_cifar", width=4)
            self.stem, self.stages, self.head = made.stem, made.stages, made.head

        def forward(self, x: Tensor) -> Tensor:
            return self.stem(x)

    ub.save(create_model("resnet8_cifar", width=4), tmp_path / "a.safetensors")
    again = ub.load(tmp_path / "a.safetensors", into=Other())
    assert isinstance(again, Other)
    ub.save(again, tmp_path / "b.safetensors")
    assert manifest_of(tmp_path / "b.safetensors")["network"] is None  # or it would come back as another


def test_steps_that_the_given_network_has_gone_are_not_repeated(tmp_path: Path) -> None:
    plain = ub.collapse(randomised(MyNet()))
    ub.save(plain, tmp_path / "a.safetensors")
    again = ub.load(tmp_path / "a.safetensors", into=ub.collapse(randomised(MyNet(), seed=2)))
    assert torch.equal(again(IMAGES), plain(IMAGES))


@pytest.fixture
def doubling() -> Iterator[None]:
    """A kind of step that puts a second head behind the first."""

    @register_replay("double")
    def double(network: nn.Module, step: dict[str, Any]) -> nn.Module:
        return nn.Sequential(network, nn.Linear(step["width"], step["width"]))

    yield
    del provenance._REPLAYS["double"]


def test_steps_of_other_rooms_are_done_again_in_their_order(tmp_path: Path, doubling: None) -> None:
    network = randomised(MyNet())
    larger = nn.Sequential(network, nn.Linear(6, 6))
    record_transform(network, larger, {"kind": "double", "width": 6})
    plain = ub.collapse(larger)
    ub.save(plain, tmp_path / "a.safetensors")
    assert [step["kind"] for step in manifest_of(tmp_path / "a.safetensors")["steps"]] == ["double", "collapse"]
    assert manifest_of(tmp_path / "a.safetensors")["made_by"].endswith("MyNet")
    assert torch.equal(ub.load(tmp_path / "a.safetensors", into=MyNet())(IMAGES), plain(IMAGES))


def test_a_step_of_nonsense_is_told(tmp_path: Path, doubling: None) -> None:
    ub.save(MyNet(), tmp_path / "a.safetensors")
    for step, message in {
        "unknown": ({"kind": "shrink"}, "step 1 is of the kind 'shrink', which this version doesn't know"),
        "incomplete": ({"kind": "double"}, r"step 1 \(double\) doesn't fit: KeyError: 'width'"),
        "without layers": ({"kind": "collapse"}, "its collapse step has no list of layers"),
        "other layers": ({"kind": "collapse", "layers": [["a", "b"]]}, "where the file has 'a b'; convert the"),
        "fewer layers": ({"kind": "collapse", "layers": []}, r"gives \d+ merged layers where the file has 0"),
    }.values():
        rewritten(tmp_path / "a.safetensors", steps=[step])
        with pytest.raises(InputError, match=message):
            ub.load(tmp_path / "a.safetensors", into=MyNet())
