"""``load_checkpoint`` and ``to_official``: weights of any origin and form, into networks of any form and back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import unbranch as ub
from unbranch.errors import InputError
from unbranch.models import create, randomise_statistics
from unbranch.models.load import load_checkpoint
from unbranch.models.official import to_official
from unbranch.models.registry import ENTRIES

X = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SMALL = [
    ("repghostnet_050", {}),
    ("repghostnet_050_identity", {}),
    ("repghostnet_050_none", {}),
    ("cifar_quick", {"block": "acb"}),
    ("resnet56_cifar", {"block": "compactor"}),
    ("mobilenet_v1", {"block": "dbb"}),
    ("mobilenet_v1", {"block": "compactor"}),
    ("repvgg_a0", {}),
]


def randomised(name: str, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    network = create(name, **options).double().eval()
    randomise_statistics(network)
    with torch.no_grad():  # so that compactors, and differences from an identity, do something
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return network


def quiet(network: nn.Module, source: Any) -> Any:
    """No warning is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_checkpoint(network, source)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
@pytest.mark.parametrize(("name", "options"), SMALL, ids=lambda v: v if isinstance(v, str) else v.get("block", ""))
@pytest.mark.parametrize("file_merged", [False, True], ids=["training file", "deploy file"])
@pytest.mark.parametrize("net_merged", [False, True], ids=["training net", "collapsed net"])
def test_weights_of_either_form_go_into_either_form(name, options, file_merged, net_merged) -> None:
    source, target = randomised(name, 1, **options), randomised(name, 2, **options)
    expected = source(X)
    state = to_official(ub.collapse(source) if file_merged else source)
    target = ub.collapse(target, X) if net_merged else target
    loaded = quiet(target, state)
    assert loaded.layout not in ("unbranch", "")
    assert loaded.merged == (file_merged and name != "repghostnet_050_none")
    assert gap(target(X), expected) < 1e-11
    if not net_merged:
        assert gap(ub.collapse(target)(X), expected) < 1e-11


@pytest.mark.parametrize(("name", "options"), SMALL, ids=lambda v: v if isinstance(v, str) else v.get("block", ""))
def test_names_come_back(name: str, options: dict[str, Any]) -> None:
    source, target = randomised(name, 1, **options), randomised(name, 2, **options)
    quiet(target, to_official(source))
    there, back = source.state_dict(), target.state_dict()
    assert all(torch.equal(there[key], back[key]) for key in there)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.timm])
def test_networks_equal_those_of_timm(name: str) -> None:
    theirs = timm.create_model(ENTRIES[name].timm, num_classes=7).double().eval()
    randomise_statistics(theirs)
    ours = create(name, num_classes=7).double().eval()
    assert quiet(ours, theirs.state_dict()).layout in ("timm", "repghost")
    x = X[:, :, :32, :32]
    expected = theirs(x)
    assert gap(ours(x), expected) < 1e-11
    assert to_official(ours, "timm").keys() == theirs.state_dict().keys()
    timm.utils.model.reparameterize_model(theirs, inplace=True)
    again = create(name, num_classes=7).double().eval()
    quiet(again, theirs.state_dict())
    assert gap(again(x), expected) < 1e-11


@torch.no_grad()
def test_resnet_takes_the_weights_of_torchvision_with_and_without_compactors() -> None:
    theirs = create("torchvision:resnet18", num_classes=7).double().eval()
    randomise_statistics(theirs)
    ours = create("resnet18", num_classes=7).double().eval()
    assert quiet(ours, theirs.state_dict()).layout == "timm"
    assert gap(ours(X), theirs(X)) < 1e-12


@torch.no_grad()
def test_plain_weights_go_into_a_network_with_compactors() -> None:
    """As ResRep starts: compactors are identities."""
    plain = randomised("resnet56_cifar", 1)
    target = create("resnet56_cifar", block="compactor").double().eval()
    quiet(target, to_official(plain, "resrep"))
    assert gap(target(X), plain(X)) < 1e-12


@torch.no_grad()
def test_deeply_fused_file_of_replknet_is_read() -> None:
    """The published helper fuses all norms behind convolutions and leaves those before."""
    source = create("replknet_13", num_classes=3, ffn_ratio=0.25).double().eval()
    randomise_statistics(source)
    state = dict(source.state_dict())
    for path, module in source.named_modules():
        parts = dict(module.named_children())
        if not {"conv", "bn"} <= parts.keys() or ".large" in path or ".small" in path:
            continue
        norm, weight = parts["bn"], parts["conv"].weight
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        state = {key: value for key, value in state.items() if not key.startswith(f"{path}.bn.")}
        state[f"{path}.conv.weight"] = weight * scale[:, None, None, None]
        state[f"{path}.conv.bias"] = norm.bias - norm.running_mean * scale
    target = create("replknet_13", num_classes=3, ffn_ratio=0.25).double().eval()
    quiet(target, state)
    assert gap(target(X), source(X)) < 1e-11


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".hdf5"])
def test_files_of_all_kinds(ending: str, tmp_path: Path) -> None:
    source, target = randomised("cifar_quick", 1, block="acb"), randomised("cifar_quick", 2, block="acb")
    state, path = to_official(source), tmp_path / f"a{ending}"
    if ending == ".pth":
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    elif ending == ".safetensors":
        save_file(state, path)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for key, value in state.items():
                file[key] = value.numpy()
            file["deps"] = [32, 32, 64]
    quiet(target, path)
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


@pytest.mark.parametrize("wrapper", ["state_dict_ema", "model_ema", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", "module.model.", "backbone.", "_orig_mod."])
def test_wrappers_and_prefixes_are_taken_off(wrapper: str, prefix: str) -> None:
    source, target = randomised("cifar_quick", 1), randomised("cifar_quick", 2)
    state = {f"{prefix}{key}": value for key, value in to_official(source).items()}
    quiet(target, {wrapper: state, "epoch": 3})
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


def test_averaged_weights_are_preferred() -> None:
    source, target = randomised("cifar_quick", 1), randomised("cifar_quick", 2)
    other = {key: value + 1 for key, value in source.state_dict().items()}
    quiet(target, {"state_dict": other, "state_dict_ema": source.state_dict()})
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("form", ["training", "collapsed"])
def test_classifier_for_other_classes_keeps_its_weights_and_says_so(form: str) -> None:
    source, target = randomised("repvgg_a0", 1, num_classes=9), randomised("repvgg_a0", 2, num_classes=5)
    head = target.head.fc.weight.clone()
    state = to_official(ub.collapse(source) if form == "collapsed" else source)
    with pytest.warns(UserWarning, match=r"head.fc.weight, head.fc.bias keep their random values"):
        loaded = load_checkpoint(target, state)
    assert loaded.left == ("head.fc.weight", "head.fc.bias")
    assert torch.equal(target.head.fc.weight, head)
    assert gap(target.forward_features(X), source.forward_features(X)) < 1e-11


@torch.no_grad()
@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet_050", "cifar_quick"])
def test_stem_for_one_channel_sees_the_sum(name: str) -> None:
    source, target = randomised(name, 1), randomised(name, 2, in_channels=1)
    with pytest.warns(UserWarning, match="another number of input channels"):
        loaded = load_checkpoint(target, to_official(source))
    assert loaded.adapted
    assert gap(target(X[:, :1]), source(X[:, :1].expand(-1, 3, -1, -1))) < 1e-12


@torch.no_grad()
def test_stem_for_six_channels_sees_the_mean_of_both_images() -> None:
    source, target = randomised("repvgg_a0", 1), randomised("repvgg_a0", 2, in_channels=6)
    with pytest.warns(UserWarning, match="another number of input channels"):
        load_checkpoint(target, to_official(source))
    assert gap(target(torch.cat([X, X], 1)), source(X)) < 1e-12


@torch.no_grad()
def test_backbone_and_features_take_what_they_have() -> None:
    source = randomised("repvgg_a0", 1)
    state = to_official(source)
    maps = create("repvgg_a0", features_only=True, out_indices=(1, 3)).double().eval()
    loaded = quiet(maps, state)
    assert "head.fc.weight" in loaded.ignored
    x = source.stem(X)
    for stage in list(source.stages)[:3]:
        x = stage(x)
    assert gap(maps(X)[1], x) < 1e-12
    pooled = create("repvgg_a0", num_classes=0).double().eval()
    quiet(pooled, state)
    assert gap(pooled(X), source.forward_features(X).mean((2, 3))) < 1e-12


@torch.no_grad()
def test_our_own_collapsed_file_goes_into_both_forms(tmp_path: Path) -> None:
    source = randomised("repvgg_a0", 1)
    ub.save(ub.collapse(source), tmp_path / "a.safetensors")
    for target in (randomised("repvgg_a0", 2), ub.collapse(randomised("repvgg_a0", 3), X)):
        quiet(target, tmp_path / "a.safetensors")
        assert gap(target(X), source(X)) < 1e-11


def test_disagreements_are_listed_and_nothing_is_changed() -> None:
    source, target = randomised("cifar_quick", 1), randomised("cifar_quick", 2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = to_official(source)
    del state["conv1.conv.weight"]
    state["conv2.conv.weight"] = torch.zeros(32, 32, 3, 3)
    state["conv9.conv.weight"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"1 missing \(.*conv1.*\); 1 unexpected \(conv9.*\); 1 wrong shape"):
        load_checkpoint(target, state)
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in before.items())


def test_a_file_of_another_network_is_told() -> None:
    target = create("cifar_quick")
    with pytest.raises(InputError, match=r"doesn't fit the network: of its \d+ names"):
        load_checkpoint(target, create("repvgg_a0").state_dict())


def test_a_window_bias_trained_after_merging_is_refused() -> None:
    network = create("repmlpnet_t224", num_classes=3).eval()
    state = to_official(ub.collapse(network))
    key = "stages.0.0.repmlp_block.fc3.bias"
    state[key] = torch.randn_like(state[key])
    with pytest.raises(InputError, match="trained after it was merged"):
        load_checkpoint(network, state)


@pytest.mark.parametrize(
    ("name", "options", "layout", "message"),
    [
        ("resnet18", {"block": "repvgg"}, None, "no published code for resnet18 with block='repvgg'"),
        ("resnet18", {}, "mmcv", "layout='mmcv' is none of acnet, dbb, timm"),
        ("timm:test_resnet", {}, None, "no published code for timm:test_resnet"),
    ],
)
def test_to_official_says_what_there_is(name, options, layout, message) -> None:
    with pytest.raises(InputError, match=message):
        to_official(create(name, **options), layout)


def test_expanded_network_has_no_published_names() -> None:
    network = ub.expand(create("resnet18"), "acb")
    with pytest.raises(InputError, match="this one is resnet18 after expand"):
        to_official(network)
