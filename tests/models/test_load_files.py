"""``load_checkpoint`` finds the weights in what training scripts write: wrappers, prefixes, junk, kinds of files."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.models.tiny import X, equal, gap, quiet, tiny
from unbranch.factory import create_model
from unbranch.weights import to_official

NAME = "cifar_quick"
State = dict[str, Tensor]


def pair() -> tuple[Any, Any]:
    return tiny(NAME, 1, "acb"), tiny(NAME, 2, "acb")


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".hdf5", ".h5"])
def test_files_of_all_kinds(ending: str, tmp_path: Path) -> None:
    source, target = pair()
    state, path = to_official(source), tmp_path / f"a{ending}"
    if ending == ".safetensors":
        save_file(state, path)
    elif ending in (".hdf5", ".h5"):
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for key, value in state.items():
                file[key] = value.numpy()
            file["deps"] = [4, 4, 8]
    else:
        torch.save(state, path)
    quiet(target, path)
    assert equal(source, target)


@pytest.mark.parametrize(
    "wrapper", ["state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "params"]
)
@pytest.mark.parametrize("prefix", ["module.", "module.model.", "backbone.", "_orig_mod.", "_orig_mod.module.", "ema."])
def test_wrappers_and_prefixes_are_taken_off(wrapper: str, prefix: str) -> None:
    source, target = pair()
    quiet(target, {wrapper: {f"{prefix}{key}": value for key, value in to_official(source).items()}, "epoch": 3})
    assert equal(source, target)


@pytest.mark.parametrize("wrapper", ["state_dict_ema", "model_ema", "ema", "params_ema"])
def test_averaged_weights_are_preferred(wrapper: str) -> None:
    source, target = pair()
    last = {key: value + 1 for key, value in source.state_dict().items()}
    quiet(target, {"state_dict": last, "model": last, wrapper: source.state_dict()})
    assert equal(source, target)


def test_averaged_weights_beside_the_others_are_preferred() -> None:
    source, target = pair()
    last = {f"model.{key}": value + 1 for key, value in source.state_dict().items()}
    loaded = quiet(target, last | {f"ema_model.module.{key}": value for key, value in source.state_dict().items()})
    assert equal(source, target)
    assert set(loaded.ignored) == last.keys()


def test_an_empty_average_is_passed_over() -> None:
    source, target = pair()
    quiet(target, {"state_dict_ema": {}, "model_ema": None, "model": source.state_dict()})
    assert equal(source, target)


def test_wrappers_lie_in_each_other() -> None:
    source, target = pair()
    quiet(target, {"model": {"state_dict": {f"module.{key}": v for key, v in to_official(source).items()}}})
    assert equal(source, target)


def test_what_real_wrappers_write_loads(tmp_path: Path) -> None:
    source, target = pair()
    averaged = torch.optim.swa_utils.AveragedModel(source)
    compiled = torch.compile(copy.deepcopy(source))
    for network in (averaged, torch.nn.DataParallel(copy.deepcopy(source)), compiled):
        torch.save({"model": network.state_dict()}, tmp_path / "a.pth")
        target = tiny(NAME, 2, "acb")
        quiet(target, tmp_path / "a.pth")
        assert equal(source, target)


def test_a_file_of_a_training_script_loads(tmp_path: Path) -> None:
    """Settings, numbers of NumPy, and the state of the optimizer lie beside the weights."""
    source, target = pair()
    optimizer = torch.optim.SGD(source.parameters(), 0.1, momentum=0.9)
    content = {
        "epoch": 119,
        "best": np.float64(76.15),
        "args": argparse.Namespace(lr=0.1),
        "optimizer": optimizer.state_dict(),
        "state_dict": to_official(source),
    }
    torch.save(content, tmp_path / "a.pth")
    quiet(target, tmp_path / "a.pth")
    assert equal(source, target)


def test_a_file_of_lightning_loads(tmp_path: Path) -> None:
    """Weights under the name of an attribute, a loss and a metric beside them."""
    source, target = pair()
    state = {f"net.{key}": value for key, value in source.state_dict().items()}
    state |= {"criterion.weight": torch.ones(5), "accuracy.total": torch.zeros(1)}
    content = {"state_dict": state, "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 0.1}, "loops": {}}
    torch.save(content, tmp_path / "a.ckpt")
    assert quiet(target, tmp_path / "a.ckpt").ignored == ("criterion.weight", "accuracy.total")
    assert equal(source, target)


@torch.no_grad()
def test_a_backbone_is_found_in_a_detectors_file() -> None:
    source = tiny("replknet_31b", 1)
    state = {f"backbone.{key}": value for key, value in to_official(source).items() if not key.startswith("head.")}
    state |= {"neck.conv.weight": torch.ones(1), "roi_head.fc.weight": torch.ones(1)}
    maps = tiny("replknet_31b", 2, features_only=True)
    assert {"neck.conv.weight", "roi_head.fc.weight", "head.norm.weight"} <= set(quiet(maps, state).ignored)
    x = source.stages[0](source.stem(X))
    assert gap(maps(X)[0], x) < 1e-12


def test_counters_of_a_profiler_are_ignored() -> None:
    source, target = pair()
    state = to_official(source)
    state |= {"total_ops": torch.zeros(1), "conv1.acb.square_conv.total_params": torch.zeros(1)}
    assert quiet(target, state).ignored == ("stages.0.conv1.conv.square.conv.total_params", "total_ops")
    assert equal(source, target)


def test_arrays_and_numbers_in_a_state_dict(tmp_path: Path) -> None:
    source, target = pair()
    arrays = {key: value.numpy() for key, value in to_official(source).items()}
    quiet(target, {**arrays, "epoch": 3, "arch": "cifar_quick", "deps": np.array([4, 4, 8])})
    assert equal(source, target)
    torch.save({**arrays, "epoch": 3}, tmp_path / "a.pth")
    target = tiny(NAME, 2, "acb")
    quiet(target, tmp_path / "a.pth")
    assert equal(source, target)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_into_single(dtype: torch.dtype) -> None:
    source, target = pair()
    state = {key: v.to(dtype) if v.is_floating_point() else v for key, v in to_official(source).items()}
    quiet(target.float(), state)
    assert torch.equal(target.stages[0].conv1.conv.square.conv.weight, state["conv1.acb.square_conv.weight"].float())


def test_weights_that_are_saved_with_a_prefix_of_their_own_keep_it() -> None:
    source, target = (torch.nn.ModuleDict({"model": create_model(NAME)}) for _ in range(2))
    quiet(target, source.state_dict())
    assert equal(source, target)
