"""``load_checkpoint``: weights in any layout and form go into networks of either form, and can be trained further."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import unbranch as ub
from tests.models.tiny import X, both_forms, equal, gap, published, quiet, scrambled, shared_forms, tiny
from unbranch.blocks import BranchedConv
from unbranch.errors import InputError
from unbranch.factory import create_model
from unbranch.models import randomise_statistics
from unbranch.weights import forms, load_checkpoint, to_official
from unbranch.weights.layouts import layouts_of

SAME_NAMES = {
    ("acnet", "dbb"), ("acnet", "resrep"), ("repghost", "timm"), ("repghost", "repghost-deploy"),
    ("replknet", "replknet-deep-fused"),
}  # fmt: skip


@pytest.mark.sweep(7)
@torch.no_grad()
@pytest.mark.parametrize(("name", "block", "layout"), published())
def test_each_layout_in_either_form_goes_into_either_form(name: str, block: str | None, layout: str) -> None:
    source, plain = shared_forms(name, block)
    expected = source(X)
    # The way from a network's training form to its collapsed one is the same for all layouts.
    targets = copy.deepcopy((source, plain) if layout == layouts_of(name, block)[0].name else (source,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "repvggplus_l2pse" else "error")  # auxiliary classifiers are gone
        for file in (source, plain):
            for target in targets:
                loaded = load_checkpoint(scrambled(target), to_official(file, layout))
                assert (loaded.layout, layout) in SAME_NAMES or loaded.layout == layout
                assert file is plain or not loaded.merged
                assert all(key.startswith("auxiliary.") for key in loaded.skipped)
                assert gap(target(X), expected) < 1e-10


@torch.no_grad()
def test_merged_weights_in_training_form_collapse_to_themselves() -> None:
    source, target = ub.collapse(tiny("resnet18", 1, "dbb")), tiny("resnet18", 2, "dbb")
    assert quiet(target, to_official(source)).merged
    again = ub.collapse(target).state_dict()
    assert all(gap(again[key], value) < 1e-10 for key, value in source.state_dict().items())


def test_merged_weights_can_be_trained_further_in_all_branches() -> None:
    """γ of the branches beside the main one learn in the first step, their kernels from the second."""
    network = tiny("resnet18", 2, "dbb").float()
    quiet(network, to_official(ub.collapse(tiny("resnet18", 1, "dbb"))))
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    x, y = X.float(), torch.tensor([0, 1])

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        return {name: float(parameter.grad.abs().max()) for name, parameter in network.named_parameters()}

    first, second = step(), step()
    blocks = [(path, m) for path, m in network.named_modules() if isinstance(m, BranchedConv)]
    closing = [f"{path}.conv_1x1.bn.weight" for path, _ in blocks] + [f"{path}.average.bn.weight" for path, _ in blocks]
    kernels = [f"{path}.conv_1x1.conv.weight" for path, _ in blocks]
    assert all(first[name] > 0 for name in closing)
    assert all(first[name] == 0 < second[name] for name in kernels)
    assert all(value > 0 for name, value in second.items() if name.endswith("conv.weight"))


@torch.no_grad()
def test_plain_weights_go_into_a_network_with_compactors() -> None:
    """As ResRep starts: compactors are identities."""
    plain, target = tiny("resnet56_cifar", 1), tiny("resnet56_cifar", 2, "compactor")
    quiet(target, to_official(plain, "resrep"))
    assert gap(target(X), plain(X)) < 1e-12


@torch.no_grad()
def test_older_names_of_dbb_without_a_stage_of_the_stem_are_known() -> None:
    source, target = tiny("resnet18", 1, "dbb"), tiny("resnet18", 2, "dbb")
    state = {key.removeprefix("stage0."): value for key, value in to_official(source, "dbb").items()}
    quiet(target, state)
    assert equal(source, target)


@torch.no_grad()
def test_deeply_fused_file_of_replknet_is_read() -> None:
    """The published helper fuses all norms behind convolutions and leaves those before."""
    source, target = tiny("replknet_31b", 1), tiny("replknet_31b", 2)
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
    quiet(target, state)
    assert gap(target(X), source(X)) < 1e-11


@torch.no_grad()
@pytest.mark.parametrize("theirs", ["torchvision:resnet18", "timm:resnet18"])
def test_resnet_takes_the_weights_of_torchvision_and_timm(theirs: str) -> None:
    network = create_model(theirs, num_classes=7).double().eval()
    randomise_statistics(network)
    ours = create_model("resnet18", num_classes=7).double().eval()
    assert quiet(ours, network.state_dict()).layout == "timm"
    assert gap(ours(X), network(X)) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet_050"])
def test_networks_of_timm_load_before_and_after_its_own_merging(name: str) -> None:
    theirs = timm.create_model(name, num_classes=7).double().eval()
    randomise_statistics(theirs)
    expected, states = theirs(X), [theirs.state_dict()]
    states.append(timm.utils.model.reparameterize_model(theirs, inplace=False).state_dict())
    for state in states:
        ours = create_model(name, num_classes=7).double().eval()
        assert quiet(ours, state).layout in ("timm", "repghost")
        assert gap(ours(X), expected) < 1e-10


# --- files of ours


@pytest.mark.sweep(2)
@torch.no_grad()
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["repvgg_b1g2", "wrn_16_8", "repmlpnet_t224"])
def test_our_own_files_of_either_form_go_into_either_form(name: str, ending: str, tmp_path: Path) -> None:
    path, targets = tmp_path / f"a{ending}", both_forms(name)
    expected = shared_forms(name)[0](X)
    for network in shared_forms(name):
        ub.save(network, path) if ending == ".safetensors" else torch.save(network.state_dict(), path)
        for target in targets:
            assert quiet(scrambled(target), path).layout == "unbranch"
            assert gap(target(X), expected) < 1e-10


def test_our_own_collapsed_file_tells_its_own_network(tmp_path: Path) -> None:
    """Classes and channels of the file, not of the network it goes into, say how it was made."""
    source, target = tiny("repvgg_b1g2", 1), tiny("repvgg_b1g2", 2, num_classes=3, in_channels=1)
    ub.save(ub.collapse(source), tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="keep their values"), pytest.warns(UserWarning, match="channels"):
        loaded = load_checkpoint(target, tmp_path / "a.safetensors")
    assert loaded.skipped == ("head.fc.weight", "head.fc.bias")
    assert loaded.adapted == ("stem.merged.weight",)


def test_file_without_counters_of_batches_loads() -> None:
    source, target = tiny("resnet18", 1, "acb"), tiny("resnet18", 2, "acb")
    for state in (source.state_dict(), to_official(source, "dbb")):
        older = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        quiet(target, older)
        assert equal(source, target)


@torch.no_grad()
def test_the_weights_of_one_users_network_load_as_ever(tmp_path: Path) -> None:
    source, target = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))
    torch.save({"model": {f"module.{key}": v for key, v in source.state_dict().items()}}, tmp_path / "a.pth")
    assert quiet(target, tmp_path / "a.pth").layout == "unbranch"
    assert equal(source, target)


def test_precision_of_the_network_stays_whatever_the_files(tmp_path: Path) -> None:
    source, target = tiny("repvgg_b1g2", 1), tiny("repvgg_b1g2", 2).float()
    for state in (to_official(source), to_official(ub.collapse(source))):
        save_file(
            {key: v.half() if v.is_floating_point() else v for key, v in state.items()}, tmp_path / "a.safetensors"
        )
        quiet(target, tmp_path / "a.safetensors")
        assert {p.dtype for p in target.parameters()} == {torch.float32}
        assert gap(target(X.float()), source(X).float()) < 0.05
    half = ub.collapse(tiny("repvgg_b1g2", 2)).half()
    quiet(half, to_official(source))
    assert {p.dtype for p in half.parameters()} == {torch.float16}


def test_a_window_bias_trained_after_merging_is_refused() -> None:
    network, plain = both_forms("repmlpnet_t224")
    state = to_official(plain)
    key = "stages.0.0.repmlp_block.fc3.bias"
    state[key] = torch.randn_like(state[key])
    with pytest.raises(InputError, match="trained after it was merged"):
        load_checkpoint(network, state)


# --- a deploy form goes into a collapsed model by its names


RENAMED = [
    ("repvgg_b1g2", None), ("repvgg_d2se", None), ("resnet18", "dbb"), ("cifar_quick", "acb"), ("mobileone_s0", None),
    ("vgg16_cifar", "compactor"),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("name", "block"), RENAMED)
@pytest.mark.parametrize("names", ["published", "ours"])
def test_a_deploy_form_goes_into_a_collapsed_model_bit_for_bit(
    name: str, block: str | None, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = shared_forms(name, block)[1]
    state = to_official(plain) if names == "published" else plain.state_dict()
    target = scrambled(copy.deepcopy(plain))
    monkeypatch.setattr(forms, "collapse", None)  # nothing is left to merge
    quiet(target, state)
    assert equal(target, plain)


@pytest.mark.sweep(2)
@torch.no_grad()
@pytest.mark.parametrize("name", ["wrn_16_8", "replknet_31b", "repghostnet_050_none"])
def test_only_norms_are_merged_where_a_published_deploy_form_has_more_of_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = shared_forms(name)[1]
    seen: list[nn.Module] = []
    original = forms.collapse
    monkeypatch.setattr(forms, "collapse", lambda network: seen.append(network) or original(network))
    target = scrambled(copy.deepcopy(plain))
    quiet(target, to_official(plain))
    assert gap(target(X), plain(X)) < 1e-12
    (between,) = seen
    assert not [m for m in between.modules() if isinstance(m, BranchedConv) and len(m.branch_names) > 1]


@torch.no_grad()
def test_a_window_bias_trained_after_merging_goes_into_a_collapsed_model() -> None:
    plain, target = both_forms("repmlpnet_t224")[1], scrambled(both_forms("repmlpnet_t224")[1])
    state = to_official(plain)
    key = "stages.0.0.repmlp_block.fc3.bias"
    state[key] = torch.randn_like(state[key])
    quiet(target, state)
    window = target.get_submodule("stages.0.0.block.perceptron").state_dict()
    assert torch.equal(next(value for key, value in window.items() if key.endswith("bias")), state[key].flatten())


def test_what_a_deploy_form_lacks_is_listed_by_the_names_of_the_collapsed_model() -> None:
    source, target = both_forms("repvgg_b1g2")[1], both_forms("repvgg_b1g2")[1]
    state = to_official(source)
    del state["stage1.0.rbr_reparam.weight"]
    state["stage1.1.rbr_reparam.weight"] = torch.zeros(1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(
        InputError, match=r"1 missing \(stages.0.0.conv.weight\); 1 wrong shape \(stages.0.1.conv.weight"
    ):
        load_checkpoint(target, state)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
