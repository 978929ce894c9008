"""Comparisons catch every difference, and results say which file to ship."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unbranch.deploy import Artifact, DeployResult, Timing, read_result
from unbranch.deploy.int8.rung import Ladder, Rung
from unbranch.deploy.reference import compare, drop_of, make_reference
from unbranch.deploy.store import Store
from unbranch.errors import InputError
from unbranch.runtimes.signature import FlatNetwork, Signature, TensorSpec


def reference(labels: Tensor | None = None) -> Any:
    torch.manual_seed(0)
    images = torch.randn(6, 3, 5, 4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(60, 4))
    return make_reference(FlatNetwork(network, images), [(batch,) for batch in images.split(2)], labels)


def outputs(found: Any) -> Any:
    return [[value.float().numpy() for value in call] for call in found.outputs]


def test_equal_outputs_agree_to_rounding() -> None:
    found = reference()
    agreement = compare(found, outputs(found))
    assert agreement.error < 1e-6
    assert agreement.rms < 1e-6
    assert agreement.same_class == 1.0
    assert agreement.accuracy is None
    assert 0 < found.noise < 1e-5


def _moved(calls: Any, change: Any) -> Any:
    return [[change(i, torch.from_numpy(v.copy())).numpy() for v in call] for i, call in enumerate(calls)]


WRONG = {
    "one number of one call": lambda i, v: v + (i == 2) * torch.eye(2, 4) * 1e-3,
    "scale": lambda _, v: v * 1.0001,
    "shape": lambda _, v: v[:, :3],
    "batch": lambda _, v: v[:1],
    "not a number": lambda i, v: v * (float("nan") if i == 1 else 1.0),
    "infinite": lambda i, v: v / (0.0 if i == 1 else 1.0),
    "zeros": lambda _, v: v * 0,
}


@pytest.mark.parametrize("change", WRONG)
def test_each_difference_is_seen(change: str) -> None:
    found = reference()
    agreement = compare(found, _moved(outputs(found), WRONG[change]))
    assert not agreement.error <= 1e-5


def test_error_of_half_precision_is_between_the_limits() -> None:
    found = reference()
    agreement = compare(
        found, [[value.astype("float16").astype("float32") for value in call] for call in outputs(found)]
    )
    assert 1e-5 < agreement.error < 2e-2


def test_missing_and_further_outputs_differ() -> None:
    found = reference()
    assert compare(found, [[] for _ in found.outputs]).error == float("inf")
    assert compare(found, [call * 2 for call in outputs(found)]).error == float("inf")


def test_accuracy_counts_known_labels_only() -> None:
    classes = reference().classes()
    labels = classes.clone()
    labels[0], labels[1] = (classes[0] + 1) % 4, -1
    found = reference(labels)
    agreement = compare(found, outputs(found))
    assert agreement.accuracy == pytest.approx(4 / 5)
    wrong = _moved(outputs(found), lambda i, v: -v if i == 2 else v)
    worse = compare(found, wrong)
    assert worse.accuracy is not None
    assert drop_of(worse, found) == pytest.approx(100 * (4 / 5 - worse.accuracy))
    unlabelled = reference()
    moved = compare(unlabelled, wrong)
    assert moved.same_class is not None
    assert drop_of(moved, unlabelled) == pytest.approx(100 * (1 - moved.same_class))


# --- names of tensors


class Outputs(nn.Module):
    """Returns what it was made with, times one tensor of the input."""

    def __init__(self, structure: Any) -> None:
        super().__init__()
        self.structure = structure

    def forward(self, x: Tensor) -> Any:
        return torch.utils._pytree.tree_map(lambda scale: x * scale, self.structure)


NAMES: dict[str, tuple[Any, list[str]]] = {
    "tensor": (1, ["output"]),
    "tuple": ((1, 2), ["output_0", "output_1"]),
    "dictionary": ({"out": 1, "aux": 2}, ["aux", "out"]),
    "nested": ({"a": [1, {"b": 2}]}, ["a_0", "a_1_b"]),
    "odd keys": ({"x y/z": 1, "0": 2, "class": 3}, ["output_0", "output_class", "x_y_z"]),
    "taken": ({"input": 1, "input_1": 2}, ["input_1", "input_1_1"]),
    "same": ({"a.b": 1, "a_b": 2}, ["a_b", "a_b_1"]),
}


@pytest.mark.parametrize("structure", NAMES)
def test_outputs_have_unique_names(structure: str) -> None:
    made, names = NAMES[structure]
    found = [spec.name for spec in FlatNetwork(Outputs(made), torch.ones(2, 3)).signature.outputs]
    assert sorted(found) == sorted(names)


class Inputs(nn.Module):
    def forward(self, image: Tensor, sizes: Any, *, factor: float = 2.0) -> Tensor:
        return image * sizes["a"] + sizes["b"][0] * sizes["b"][1] * factor


def test_inputs_are_named_after_arguments_and_constants_stay() -> None:
    example = (torch.ones(2, 3), {"a": torch.ones(2, 3), "b": [torch.ones(2, 3), 3.0]})
    flat = FlatNetwork(Inputs(), example)
    assert [spec.name for spec in flat.signature.inputs] == ["image", "sizes_a", "sizes_b_0"]
    (found,) = flat(*(2 * value for value in flat.example))
    assert torch.equal(found, torch.full((2, 3), 2.0 * 2 + 2 * 3 * 2))


def test_network_without_tensors_can_not_be_deployed() -> None:
    with pytest.raises(InputError):
        FlatNetwork(Outputs([]), torch.ones(2, 3))


# --- results


def timing(ms: float, batch: int = 1, setting: str = "default") -> Timing:
    return Timing(setting, 2, batch, ms, 2 * ms, 10, 5.0, 30.0)


def result(directory: Path) -> DeployResult:
    spec = TensorSpec("input", (1, 3, 8, 8), "float32", (0,))
    artifacts = (
        Artifact("torch", "float32", "verified", path=directory / "torch/model.pt2", size=9, operations=3, error=1e-7,
                 limit=1e-5, same_class=1.0, timings=(timing(4), timing(3, setting="channels_last"))),
        Artifact("onnx", "float32", "verified", path=directory / "onnx/model.onnx", size=8, error=2e-7, limit=1e-5,
                 timings=(timing(2), timing(9, 8))),
        Artifact("onnx", "int8", "verified", path=directory / "onnx-int8/model.onnx", size=3, error=1e-1, rms=0.05,
                 same_class=0.99, timings=(timing(1.5), timing(10, 8))),
        Artifact("ncnn", "float32", "differs", "by a lot", timings=(timing(0.1),)),
        Artifact("coreml", "float32", "not verified", "no macOS", path=directory / "coreml-not-verified/m"),
        Artifact("mnn", "float32", "unavailable", "pip install MNN"),
    )  # fmt: skip
    ladder = Ladder((Rung("ptq", "nncf", rms=0.1, drop=3.0), Rung("mended", "nncf", rms=0.1, drop=0.2)), 0.5, True)
    return DeployResult(
        directory, "net", artifacts, "4 images", 4, 1e-7, 0.75, {"cpu": "x"}, ("a note",), Signature((spec,), (spec,)),
        ladder,
    )  # fmt: skip


def test_best_is_a_verified_one(tmp_path: Path) -> None:
    found = result(tmp_path)
    best = {by: found.best(by).name for by in ("latency", "size", "error")}  # type: ignore[arg-type]
    assert best == {"latency": "onnx int8", "size": "onnx int8", "error": "torch"}
    assert found.best("latency", batch=8).name == "onnx"
    assert str(tmp_path / "onnx-int8/model.onnx") in found.recommendation
    assert {a.target for a in found.failed} == {"ncnn", "mnn"}
    with pytest.raises(InputError):
        found.best("beauty")  # type: ignore[arg-type]
    with pytest.raises(InputError):
        replace(found, artifacts=found.artifacts[3:]).best()
    assert "nothing to recommend" in replace(found, artifacts=found.artifacts[3:]).recommendation


def test_result_comes_back_from_its_file(tmp_path: Path) -> None:
    import json

    found = result(tmp_path)
    staged = tmp_path / "staged"
    staged.mkdir()
    Store(tmp_path, []).commit(staged, json.dumps(found.to_dict()))
    assert read_result(tmp_path) == found
    assert all(name in str(found) for name in ("onnx int8", "by a lot", "pip install MNN", "a note"))
    assert "onnx int8" in found._repr_html_()


@pytest.mark.parametrize(("drops", "chosen"), [
    ([0.1, 0.0], 0), ([3.0, 0.2], 1), ([3.0, 2.0, 5.0], 1), ([None], 0), ([-1.0], 0), ([], None),
])  # fmt: skip
def test_ladder_chooses_the_first_that_is_good_enough(drops: list[float | None], chosen: int | None) -> None:
    rungs = tuple(Rung(str(i), "nncf", rms=0.1, drop=drop) for i, drop in enumerate(drops))
    found = Ladder((*rungs, Rung("broken", "nncf", problem="no")), 0.5, False).chosen
    assert (None if found is None else found.name) == (None if chosen is None else str(chosen))


def steady(directory: Path, name: str, precision: Any, ms: float, uncertainty: float | None) -> Artifact:
    times = (replace(timing(ms), uncertainty_ms=uncertainty),)
    return Artifact(name, precision, "verified", path=directory / name / "m", size=1, error=0.0, timings=times)


@pytest.mark.parametrize(("rows", "shipped", "measurable"), [
    ([("a", "float32", 1.0, 0.01), ("b", "float32", 2.0, 0.01)], "a", True),
    ([("a", "float32", 1.0, 0.3), ("b", "float32", 1.5, 0.3)], "a", False),
    ([("a", "int8", 1.0, 0.01), ("b", "float32", 2.0, 0.01)], "a", True),
    ([("a", "int8", 1.0, 0.3), ("b", "float32", 1.5, 0.3)], "b", False),  # float32 loses nothing
    ([("a", "float16", 1.0, 0.0), ("b", "float32", 1.01, 0.0)], "b", False),
    ([("a", "float32", 1.0, None), ("b", "float32", 1.5, None)], "a", True),
    ([("a", "float32", 1.0, None)], "a", None),
])  # fmt: skip
def test_differences_within_the_noise_are_not_called_faster(
    tmp_path: Path, rows: Any, shipped: str, measurable: bool | None
) -> None:  # fmt: skip
    found = replace(result(tmp_path), artifacts=tuple(steady(tmp_path, *row) for row in rows))
    text = found.recommendation
    assert f"Ship {tmp_path / shipped / 'm'}:" in text
    assert ("not measurably" in text) == (measurable is False)
    assert ("% less than" in text) == (measurable is True)


def test_batches_without_one_image_are_recommended_too(tmp_path: Path) -> None:
    artifact = replace(steady(tmp_path, "a", "float32", 1.0, None), timings=(timing(8.0, batch=8),))
    assert "8 images" in replace(result(tmp_path), artifacts=(artifact,)).recommendation
