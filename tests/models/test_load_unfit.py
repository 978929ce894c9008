"""``load_checkpoint`` adapts what almost fits, with a warning, and refuses the rest with a list and a hint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import unbranch as ub
from tests.models.tiny import X, both_forms, equal, gap, quiet, scrambled, tiny
from unbranch.errors import InputError
from unbranch.factory import create_model
from unbranch.weights import load_checkpoint, to_official
from unbranch.weights.stem import adapt_kernel

KEPT = r"they keep their values"
FC = ("head.fc.weight", "head.fc.bias")


def values(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def unchanged(network: nn.Module, before: dict[str, Tensor], *keys: str) -> bool:
    return all(torch.equal(network.state_dict()[key], before[key]) for key in keys or before)


# --- other classes


@torch.no_grad()
@pytest.mark.parametrize("name", ["repvgg_b1g2", "alexnet", "vgg16_cifar"])
@pytest.mark.parametrize("file_form", [0, 1], ids=["training file", "deploy file"])
@pytest.mark.parametrize("net_form", [0, 1], ids=["training net", "collapsed net"])
def test_classifier_for_other_classes_keeps_its_values(name: str, file_form: int, net_form: int) -> None:
    source, target = both_forms(name)[file_form], tiny(name, 2, num_classes=7)
    target = ub.collapse(target) if net_form else target
    before = values(target)
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64) if name == "alexnet" else X
    with pytest.warns(UserWarning, match=f"skipped head.fc.weight, head.fc.bias, missing .* {KEPT}"):
        loaded = load_checkpoint(target, to_official(source))
    assert loaded.skipped == FC
    assert unchanged(target, before, *FC)
    features = [network.forward_head(network.forward_features(x), pre_logits=True) for network in (target, source)]
    assert gap(*features) < 1e-10


def test_auxiliary_classifiers_of_other_classes_keep_their_values() -> None:
    source, target = tiny("repvggplus_l2pse", 1), tiny("repvggplus_l2pse", 2, num_classes=7)
    before = values(target)
    kept = [key for key in before if key.startswith("head.fc.") or ".classify.fc." in key]
    with pytest.warns(UserWarning, match=KEPT):
        assert sorted(load_checkpoint(target, to_official(source)).skipped) == sorted(kept)
    assert len(kept) == 8
    assert unchanged(target, before, *kept)
    assert not unchanged(target, before, "auxiliary.stage1.conv.conv.weight")


def test_auxiliary_classifiers_that_a_deploy_file_lacks_keep_their_values() -> None:
    source, target = both_forms("repvggplus_l2pse")[1], tiny("repvggplus_l2pse", 2)
    before = values(target)
    with pytest.warns(UserWarning, match=KEPT):
        loaded = load_checkpoint(target, to_official(source))
    assert set(loaded.skipped) == {key for key in before if key.startswith("auxiliary.")}
    assert unchanged(target, before, *loaded.skipped)


@torch.no_grad()
def test_a_classifier_that_was_reset_counts() -> None:
    """A collapsed network may have other classes than it was made with."""
    source, (_, target) = tiny("repvgg_b1g2", 1, num_classes=3), both_forms("repvgg_b1g2")
    target.reset_classifier(3)
    quiet(target.double(), to_official(source))
    assert gap(target(X), source(X)) < 1e-10
    target.reset_classifier(0)
    quiet(target, to_official(source))
    assert gap(target(X), source.forward_head(source.forward_features(X), pre_logits=True)) < 1e-10


# --- no classes, no head


@torch.no_grad()
@pytest.mark.parametrize("form", [0, 1], ids=["training file", "deploy file"])
def test_backbones_and_features_take_what_they_have(form: int) -> None:
    source = both_forms("resnet18", "dbb")[form]
    state = to_official(source)
    maps = tiny("resnet18", 2, "dbb", features_only=True, out_indices=(0, 2))
    ignored = quiet(maps, state).ignored
    assert {"head.fc.weight", "head.fc.bias"} < set(ignored)
    assert all(key.startswith(("head.", "stages.2.", "stages.3.")) for key in ignored)
    x = source.stages[1](source.stages[0](source.stem(X)))
    assert gap(maps(X)[1], x) < 1e-10
    pooled = tiny("resnet18", 3, "dbb", num_classes=0)
    quiet(pooled, state)
    assert gap(pooled(X), source.forward_features(X).mean((2, 3))) < 1e-10
    collapsed = ub.collapse(tiny("resnet18", 4, "dbb", features_only=True, out_indices=(0, 2)))
    quiet(collapsed, state)
    assert gap(collapsed(X)[1], x) < 1e-10


def test_norms_on_maps_that_a_classifiers_file_lacks_stay() -> None:
    source, target = tiny("replknet_31b", 1), tiny("replknet_31b", 2, features_only=True, feature_norms=True)
    with pytest.warns(UserWarning, match=r"norms.0.weight, .* keep their values"):
        loaded = load_checkpoint(target, to_official(source))
    assert all(key.startswith("norms.") for key in loaded.skipped)
    without = tiny("replknet_31b", 3, features_only=True)
    assert set(quiet(without, to_official(target)).ignored) == set(loaded.skipped)


def test_a_head_that_a_backbones_file_lacks_stays() -> None:
    source, target = tiny("replknet_31b", 1, features_only=True), tiny("replknet_31b", 2)
    before = values(target)
    with pytest.warns(UserWarning, match=KEPT):
        loaded = load_checkpoint(target, to_official(source))
    assert set(loaded.skipped) == {key for key in before if key.startswith("head.")}
    assert torch.equal(target.stem[0].conv.weight, source.stem[0].conv.weight)


def test_half_a_classifier_is_missing_and_not_left() -> None:
    state = to_official(tiny("cifar_quick", 1))
    del state["fc2.bias"]
    with pytest.raises(InputError, match=r"1 missing \(head.fc.bias\)"):
        load_checkpoint(tiny("cifar_quick", 2), state)


# --- other channels

STEMS = [
    ("repvgg_b1g2", None), ("cifar_quick", "acb"), ("cifar_quick", "dbb"), ("cifar_quick", "mobileone"),
    ("resnet56_cifar", "dbb"), ("resnet18", None), ("wrn_16_8", "acb"), ("mobilenet_v1", "repvgg"),
]  # fmt: skip


@pytest.mark.sweep(5)
@torch.no_grad()
@pytest.mark.parametrize(("name", "block"), STEMS)
def test_stem_sees_other_channels_as_its_merged_kernel_would(name: str, block: str | None) -> None:
    """Loading branches for other channels, and merging, is merging and adapting the kernel."""
    source, expected = both_forms(name, block)
    stem = next(m for m in expected.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    weight, merged = stem.weight, expected.state_dict()
    for channels in (1, 4, 6):
        x = torch.randn(2, channels, 64, 64, dtype=torch.float64)
        stem.weight = nn.Parameter(adapt_kernel(weight, channels))
        expected.input_spec = expected.input_spec._replace(in_channels=channels)
        for state in (source.state_dict(), merged):
            target = tiny(name, 2, block, in_channels=channels)
            with pytest.warns(UserWarning, match="another number of input channels"):
                assert load_checkpoint(target, state).adapted
            assert gap(target(x), expected(x)) < 1e-10


@torch.no_grad()
def test_grey_images_are_seen_as_if_repeated_and_two_images_as_their_mean() -> None:
    source = tiny("repvgg_b1g2", 1)
    grey, both = (tiny("repvgg_b1g2", 2, in_channels=channels) for channels in (1, 6))
    for target in (grey, both):
        with pytest.warns(UserWarning, match="another number of input channels"):
            load_checkpoint(target, to_official(ub.collapse(source)))
    assert gap(grey(X[:, :1]), source(X[:, :1].expand(-1, 3, -1, -1))) < 1e-10
    assert gap(both(torch.cat([X, X], 1)), source(X)) < 1e-10


def test_other_classes_and_channels_at_once_in_a_collapsed_network() -> None:
    target = ub.collapse(tiny("repvgg_b1g2", 2, in_channels=4, num_classes=9))
    with pytest.warns(UserWarning, match=KEPT), pytest.warns(UserWarning, match="input channels"):
        loaded = load_checkpoint(target, to_official(tiny("repvgg_b1g2", 1)))
    assert loaded.skipped == FC


# --- pruned networks


def pruned_state() -> tuple[nn.Module, list[int], dict[str, Any]]:
    widths = [4, 3, 4, 2, 4, 8, 5, 8, 16, 7, 16]
    source = tiny("resnet56_cifar", 1, "compactor", pruned_widths=widths)
    return source, widths, to_official(ub.collapse(source))


@torch.no_grad()
@pytest.mark.parametrize("block", [None, "compactor"])
def test_a_pruned_file_makes_its_network_in_one_call(tmp_path: Path, block: str | None) -> None:
    source, widths, state = pruned_state()
    save_file({**state, "deps": torch.tensor(widths)}, tmp_path / "a.safetensors")
    options: dict[str, Any] = {"width": 4, "depths": [2, 1, 1], "num_classes": 5, "block": block}
    network = ub.create_model("resnet56_cifar", **options, pretrained=tmp_path / "a.safetensors").double().eval()
    assert network.stages[0][0].conv1.conv.out_channels == 3
    assert gap(network(X.float().double()), source(X)) < 1e-4
    whole = to_official(tiny("resnet56_cifar", 1))
    save_file(whole, tmp_path / "b.safetensors")
    network = ub.create_model("resnet56_cifar", **options, pretrained=tmp_path / "b.safetensors")
    assert network.stages[0][0].conv1.conv.out_channels == 4


def test_a_pruned_file_says_which_widths_the_network_needs() -> None:
    _, widths, state = pruned_state()
    for target in both_forms("resnet56_cifar"):
        before = values(target)
        with pytest.raises(InputError) as caught:
            load_checkpoint(target, state)
        assert str(caught.value).endswith(f"it holds a pruned network: create yours with pruned_widths={widths}")
        assert unchanged(target, before)
    quiet(tiny("resnet56_cifar", 2, pruned_widths=widths), state)


# --- what doesn't fit


@pytest.mark.parametrize("form", [0, 1], ids=["training net", "collapsed net"])
def test_disagreements_are_listed_and_nothing_is_changed(form: int) -> None:
    target = both_forms("cifar_quick", "acb")[form]
    before = values(scrambled(target))
    state = to_official(tiny("cifar_quick", 1, "acb"))
    del state["conv1.acb.square_conv.weight"]
    state["conv2.acb.square_conv.weight"] = torch.zeros(4, 4, 3, 3)
    state["conv9.acb.square_conv.weight"] = torch.zeros(1)
    message = r"1 missing \(.*conv1.*\); 1 unexpected \(conv9.*\); 1 wrong shape \(.*conv2.* where the model has"
    with pytest.raises(InputError, match=message):
        load_checkpoint(target, state)
    assert unchanged(target, before)


def test_merged_layers_of_another_shape_are_all_listed() -> None:
    """That a merged layer doesn't fit is told with everything else, not at the first one."""
    state = to_official(both_forms("repvgg_b1g2")[1])
    state = {key: value[:-1] if key.startswith("stage1.") else value for key, value in state.items()}
    with pytest.raises(InputError, match=r"2 wrong shape \(stages.0.0.conv_kxk.conv.weight .* stages.0.1.conv_kxk"):
        load_checkpoint(tiny("repvgg_b1g2", 2), state)


def test_a_file_of_another_network_is_told() -> None:
    with pytest.raises(InputError, match=r"doesn't fit the model: of its \d+ names, such as stem.*it looks like repv"):
        load_checkpoint(create_model("cifar_quick"), create_model("repvgg_a0").state_dict())


@pytest.mark.parametrize(
    ("network", "file", "form", "hint"),
    [
        (("repvgg_a0", {}), ("repvgg_b1g4", {}), "published", "repvgg_b1g4, and the model is repvgg_a0"),
        (("repvgg_a0", {}), ("repvgg_a1", {}), "deploy", "repvgg_a1"),
        (("repghostnet_050", {}), ("repghostnet_080", {"num_classes": 3}), "ours", "repghostnet_080"),
        (("resnet18", {}), ("resnet18", {"block": "dbb"}), "published", "resnet18 with block='dbb'"),
        (("resnet18", {"block": "acb"}), ("resnet18", {}), "published", "resnet18, and the model is resnet18 with"),
        (("cifar_quick", {}), ("mobileone_s0", {}), "published", "mobileone_s0"),
    ],
)
def test_the_network_that_a_file_looks_like_is_named(network: Any, file: Any, form: str, hint: str) -> None:
    source = create_model(file[0], **file[1]).eval()
    source = ub.collapse(source) if form == "deploy" else source
    with pytest.raises(InputError, match=f"it looks like {hint}"):
        load_checkpoint(
            create_model(network[0], **network[1]), source.state_dict() if form == "ours" else to_official(source)
        )


def test_what_is_missing_from_the_right_network_gets_no_hint() -> None:
    state = to_official(tiny("cifar_quick", 1))
    del state["conv1.conv.weight"]
    with pytest.raises(InputError, match=r"1 missing \(stages.0.conv1.conv.weight\)$"):
        load_checkpoint(tiny("cifar_quick", 2), state)


@pytest.mark.parametrize("source", [{}, {"a": 1}, {"model": {"a": "b"}}])
def test_a_state_dict_without_tensors_is_told(source: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the state dict holds no table of tensors"):
        load_checkpoint(tiny("cifar_quick"), source)


def test_equal_helper_can_fail() -> None:
    assert not equal(tiny("cifar_quick", 1), tiny("cifar_quick", 2))
