"""Weights of others load or tell everything that doesn't fit; files of ours know their network."""

from __future__ import annotations

import copy
import fractions
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unbranch.errors import InputError
from unbranch.weights import load_weights, read_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_pickled_weights_load_from_every_wrapper(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    trained = network()
    weights: dict[str, Any] = {prefix + key: value for key, value in trained.state_dict().items()}
    torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / "a.pth")
    fresh = network()
    load_weights(fresh, tmp_path / "a.pth")
    assert same(fresh, trained)


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    last, averaged = network().state_dict(), network().state_dict()
    torch.save({"state_dict": last, "state_dict_ema": averaged}, tmp_path / "a.pt")
    assert torch.equal(read_weights(tmp_path / "a.pt")["0.weight"], averaged["0.weight"])


def test_safetensors_load(tmp_path: Path) -> None:
    trained, fresh = network(), network()
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    load_weights(fresh, tmp_path / "a.safetensors")
    assert same(fresh, trained)


def test_older_file_without_batch_counters_loads(tmp_path: Path) -> None:
    weights = {key: value for key, value in network().state_dict().items() if "num_batches" not in key}
    torch.save(weights, tmp_path / "a.pth")
    load_weights(network(), tmp_path / "a.pth")


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    weights = network().state_dict()
    weights["0.bias"] = torch.zeros(9)
    weights["head.weight"] = weights.pop("1.weight")
    torch.save(weights, tmp_path / "a.pth")
    fresh = network()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    message = (
        r"1 missing \(1.weight\); 1 unexpected \(head.weight\); "
        r"1 wrong shape \(0.bias \(9,\) where the model has \(4,\)\)$"
    )
    with pytest.raises(InputError, match=message):
        load_weights(fresh, tmp_path / "a.pth")
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_long_lists_are_cut(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"6 missing \(0.weight, 0.bias, 1.weight, 1.bias and 2 more\)"):
        load_weights(network(), tmp_path / "a.pth")


def test_file_with_python_objects_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": network().state_dict(), "args": fractions.Fraction(1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"not only tensors but fractions\.Fraction"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_damaged_file_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="is damaged or no"):
        read_weights(tmp_path / name)


def test_truncated_file_is_told(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors"):
        path = tmp_path / name
        state = network().state_dict()
        torch.save(state, path) if name == "a.pth" else save_file(state, path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(InputError, match="is damaged or no"):
            read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, {}, torch.zeros(2)])
def test_file_without_a_table_of_tensors_is_told(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds no table of tensors"):
        read_weights(tmp_path / "a.pth")


def test_missing_file_and_unknown_kind_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_weights(tmp_path / "a.pth")
    (tmp_path / "a.npz").touch()
    with pytest.raises(InputError, match=r"must end in one of .safetensors, .pth"):
        read_weights(tmp_path / "a.npz")


def test_weights_of_an_averaging_wrapper_load(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(network())
    torch.save({"model": network().state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "a.pth")
    fresh = network()
    load_weights(fresh, tmp_path / "a.pth")
    assert same(fresh, averaged.module)


def test_wrappers_lie_in_each_other(tmp_path: Path) -> None:
    trained, fresh = network(), network()
    torch.save({"model": {"state_dict": trained.state_dict()}}, tmp_path / "a.ckpt")
    load_weights(fresh, tmp_path / "a.ckpt")
    assert same(fresh, trained)


def test_a_wrapper_that_holds_itself_is_told(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds no table of tensors"):
        read_weights(tmp_path / "a.pth")


def test_a_prefix_of_the_networks_own_stays(tmp_path: Path) -> None:
    trained, fresh = (nn.ModuleDict({"module": network()}) for _ in range(2))
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    load_weights(fresh, tmp_path / "a.pth")
    assert same(fresh, trained)


def test_half_precision_weights_load_into_the_networks_own_precision(tmp_path: Path) -> None:
    trained, fresh = network(), network()
    torch.save(copy.deepcopy(trained).half().state_dict(), tmp_path / "a.pth")
    load_weights(fresh, tmp_path / "a.pth")
    assert torch.equal(fresh[0].weight, trained[0].weight.half().float())


def tied() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    return network


def test_a_shared_tensor_is_found_under_either_name(tmp_path: Path) -> None:
    trained, fresh = tied(), tied()
    weights = trained.state_dict()
    del weights["0.weight"]  # as the libraries of others leave out what is shared
    save_file(weights, tmp_path / "a.safetensors")
    load_weights(fresh, tmp_path / "a.safetensors")
    assert same(fresh, trained)


def test_unequal_values_of_a_shared_tensor_are_told(tmp_path: Path) -> None:
    torch.save({**tied().state_dict(), "1.weight": torch.zeros(3, 3)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"1 unequal though shared \(0.weight and 1.weight\)"):
        load_weights(tied(), tmp_path / "a.pth")


@pytest.mark.parametrize(
    "value", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_without_ordinary_values_are_refused(tmp_path: Path, value: torch.Tensor) -> None:
    torch.save({"a": value}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds no table of tensors"):
        read_weights(tmp_path / "a.pth")


def test_values_of_another_kind_are_told(tmp_path: Path) -> None:
    weights = network().state_dict()
    weights["1.num_batches_tracked"] = torch.tensor(1.5)
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"1 wrong type \(1.num_batches_tracked torch.float32 where"):
        load_weights(network(), tmp_path / "a.pth")


@pytest.mark.parametrize("empty", [nn.LazyLinear(2), nn.Linear(2, 2, device="meta")])
def test_networks_without_values_are_refused(tmp_path: Path, empty: nn.Module) -> None:
    torch.save({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="parameters without values"):
        load_weights(empty, tmp_path / "a.pth")


def test_a_program_is_told_and_not_loaded(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network().eval(), torch.zeros(1, 3, 8, 8)).save(tmp_path / "a.pt")
    with pytest.raises(InputError, match="is a TorchScript program"):
        read_weights(tmp_path / "a.pt")


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(50 << 20))
    with pytest.raises(InputError, match="it is compressed"):
        read_weights(tmp_path / "a.pth")


def test_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, not a file"):
        read_weights(tmp_path)
