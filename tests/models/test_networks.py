"""Every family as an object of its user's: head, sizes, types, copies, and one sentence for images it can't take."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.models.zoo_rows import ROWS, Row, tensor_of, trained
from unbranch.errors import InputError
from unbranch.models import FeatureExtractor
from unbranch.models.registry import MODELS

every_family = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def assert_equal(ours: Tensor, theirs: Tensor, tolerance: float = 1e-12) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


# --- the head ---------------------------------------------------------------------------------------


@every_family
@torch.no_grad()
def test_forward_is_features_then_head_then_classifier(row: Row) -> None:
    network, x = trained(row.name), row.images().double()
    last = network.forward_features(x)
    before = network.forward_head(last, pre_logits=True)
    logits = network(x)
    assert last.shape[:2] == (2, network.num_features)
    assert before.shape == (2, network.head_hidden_size)
    assert logits.shape == (2, 5) == (2, network.num_classes)
    assert torch.equal(network.forward_head(last), logits)
    assert torch.equal(network.get_classifier()(before), logits)
    assert logits.std(0).min() > 0  # it looks at the images


@every_family
@torch.no_grad()
def test_without_classes_the_features_before_the_classifier_come_out(row: Row) -> None:
    network, x = trained(row.name), row.images().double()
    bare = row.make(num_classes=0).double().eval()
    lacking = set(network.state_dict()) - set(bare.state_dict())
    assert lacking == {key for key in network.state_dict() if "fc." in key and key.startswith(("head", "auxiliary"))}
    bare.load_state_dict({key: value for key, value in network.state_dict().items() if key not in lacking})
    assert bare.num_classes == 0
    assert torch.equal(bare(x), network.forward_head(network.forward_features(x), pre_logits=True))
    assert [*bare.get_classifier().parameters()] == []


@every_family
def test_classifier_is_replaced_and_nothing_else(row: Row) -> None:
    network = copy.deepcopy(trained(row.name)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.reset_classifier(7)
    changed = [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])]
    heads = 1 + len(getattr(network, "auxiliary", ()))
    assert len(changed) == 2 * heads
    assert all(".fc." in key for key in changed)
    outputs = network(row.images().double())
    logits = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    assert [(y.shape, y.dtype) for y in logits] == [((2, 7), torch.float64)] * heads
    network.reset_classifier(0)
    assert network.eval()(row.images().double()).shape == (2, network.head_hidden_size)
    network.reset_classifier(3)
    assert network(row.images().double()).shape == (2, 3)
    with pytest.raises(InputError, match="`num_classes` must be ≥ 0, where 0 gives features alone, got -1"):
        network.reset_classifier(-1)


def test_auxiliary_classifiers_are_there_in_training_alone() -> None:
    network, x = ROWS["repvggplus_l2pse"].make().double(), ROWS["repvggplus_l2pse"].images().double()
    outputs = network(x)
    assert list(outputs) == ["main", "stage1", "stage2", "stage3"]
    assert {y.shape for y in outputs.values()} == {(2, 5)}
    network.eval()
    every = network.forward_all(x)
    assert torch.equal(network(x), every["main"])
    assert list(every) == list(outputs)
    with pytest.raises(InputError, match="takes images"):
        network.train()(x[:, :1])


# --- images -----------------------------------------------------------------------------------------


@every_family
@torch.no_grad()
def test_images_of_any_size_that_the_design_admits_are_taken(row: Row) -> None:
    network, least, step = trained(row.name), max(row.smallest, row.multiple), row.multiple
    sizes = [(least, least), (least, 3 * least)] if step > 1 else [(least, least), (least + 1, least + 38), (77, 64)]
    for size in sizes:
        assert network(row.images(1, size=size).double()).isfinite().all(), size


@every_family
@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(row: Row, channels: int) -> None:
    network = row.make(in_channels=channels).eval()
    assert network.in_channels == channels
    assert network(row.images(1, channels)).shape == (1, 5)
    with pytest.raises(InputError, match=rf"takes images \(B, {channels}, H, W\), got \(1, 3, .*in_channels=3"):
        network(row.images(1))


@every_family
@pytest.mark.parametrize("form", ["classifier", "backbone"])
def test_images_it_can_not_take_get_one_sentence_that_says_what_to_do(row: Row, form: str) -> None:
    network = row.make(**({"features_only": True} if form == "backbone" else {})).eval()
    height, width = row.size
    wrong = {
        (3, height, width): r"x\[None\] makes a batch of one image",
        (1, height, width, 3): r"x.permute\(0, 3, 1, 2\) puts the channels first",
        (2, 5, height, width): "for such images create it with in_channels=5",
        (7,): r"got \(7,\)$",
    }
    if row.multiple > 1:
        wrong[1, 3, height, width + 1] = f"multiples of {row.multiple}, got {height}×{width + 1}: resize or pad them"
    if row.smallest > 1 and row.multiple == 1:
        side = row.smallest
        wrong[1, 3, side - 1, side] = f"at least {side}×{side}, got {side - 1}×{side}: enlarge them"
        wrong[1, 3, side, side - 1] = "enlarge them"
    for shape, message in wrong.items():
        with pytest.raises(InputError, match=message):
            network(torch.zeros(shape))


@pytest.mark.parametrize(
    "row", [row for row in ROWS.values() if 1 < row.smallest != row.multiple], ids=lambda r: r.name
)
def test_the_smallest_image_is_the_smallest_that_works(row: Row) -> None:
    network = row.make().eval()
    network.input_spec = network.input_spec._replace(min_size=1)
    network(row.images(1, size=(row.smallest, row.smallest)))
    with pytest.raises(RuntimeError):
        network(row.images(1, size=(row.smallest - 1, row.smallest)))


# --- types, devices, memory -------------------------------------------------------------------------


@every_family
@torch.no_grad()
def test_channels_last_gives_the_same(row: Row) -> None:
    network, x = trained(row.name), row.images().double()
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    assert_equal(last(x.to(memory_format=torch.channels_last)), network(x))


@every_family
@torch.no_grad()
def test_bfloat16_gives_about_the_same(row: Row) -> None:
    network, x = trained(row.name), row.images().double()
    y = copy.deepcopy(network).bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.double() - network(x)).norm() < 0.1 * network(x).norm()


FULL = (
    *("repvgg_b1g4", "repvggplus_l2pse", "repmlpnet_t256", "replknet_xl", "repghostnet_200", "mobileone_s4"),
    *("resnet50", "resnet110_cifar", "wrn_16_8", "mobilenet_v1", "alexnet", "vgg16_cifar", "cifar_quick"),
)


@pytest.mark.parametrize("name", FULL)
def test_networks_of_full_size_give_logits_and_maps_on_the_meta_device(name: str) -> None:
    """At their own height and twice their own width; the shapes alone are computed."""
    entry = MODELS[name]
    channels, height, width = entry.input_size
    with torch.device("meta"):
        network = ub.create_model(name).eval()
        x = torch.empty(2, channels, height, 2 * width)
        assert network(x).shape == (2, entry.num_classes)
        maps, info = FeatureExtractor(network)(x), network.feature_info
    assert [y.shape[1] for y in maps] == info.channels()
    if name not in ("alexnet", "cifar_quick"):  # whose poolings cut borders off
        sizes = [(height // reduction, 2 * width // reduction) for reduction in info.reduction()]
        assert [tuple(y.shape[2:]) for y in maps] == sizes


# --- copies -----------------------------------------------------------------------------------------


def pickled(network: Any) -> Any:
    return pickle.loads(pickle.dumps(network))


def saved(network: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@every_family
@torch.no_grad()
def test_copies_pickles_and_states_give_the_same(row: Row) -> None:
    network, x = trained(row.name), row.images().double()
    expected = network(x)
    for again in (copy.deepcopy(network), pickled(network), saved(network)):
        assert torch.equal(again(x), expected)
        assert type(again) is type(network)
        assert again.feature_info == network.feature_info
    fresh = row.make(num_classes=5).double().eval()
    assert not torch.equal(fresh(x), expected)
    fresh.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(fresh(x), expected)


# --- one step of training ---------------------------------------------------------------------------


@every_family
def test_every_parameter_gets_a_finite_gradient(row: Row) -> None:
    network = row.make().double().train()
    tensor_of(network(row.images(4).double())).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
