"""Quantisation-aware training: the file computes what was trained, and a run is continued with the same bits."""

from __future__ import annotations

import importlib.util
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unbranch.deploy import deploy, read_result
from unbranch.deploy.int8 import ladder
from unbranch.deploy.int8.qat.network import FakeQuantizedNetwork, fake_quantized
from unbranch.deploy.int8.qat.onnx import write_qdq
from unbranch.deploy.int8.qat.recipe import training_data
from unbranch.deploy.samples import load_samples
from unbranch.errors import InputError, TrainingInterrupted
from unbranch.runtimes.signature import FlatNetwork
from unbranch.runtimes.source import write_source
from unbranch.runtimes.targets.pytorch import TorchTarget

pytestmark = pytest.mark.slow
one_process = pytest.mark.xdist_group("training in integers")

pytest.importorskip("accelerate")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("sklearn")


class Digits(nn.Sequential):
    """A depthwise network for 8 × 8 images of one channel."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1, groups=width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * width, classes),
        )  # fmt: skip
        self.pretrained_cfg = {"input_size": (1, 8, 8)}


class Residual(nn.Module):
    """Writes in place, adds, and joins; most of its values are read more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm, self.fc, self.relu = nn.BatchNorm2d(4), nn.Linear(8, 5), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        y = self.norm(self.second(x))
        y += x
        return self.fc(torch.cat([y, nn.functional.max_pool2d(x, 3, 1, 1)], 1).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze-and-excitation, Hardswish, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.up = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 6, 2, 2)
        self.last = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.hardswish(self.conv(x))
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return self.last(nn.functional.relu6(self.up(y))).mean((2, 3))


class Twice(nn.Module):
    """Uses one layer in two places, and returns features that a layer reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(self.conv(x).relu())
        return self.fc(y.flatten(1)), y


# Each network, with the convolutions and additions that ONNX Runtime executes on integers
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "depthwise": (Digits, {"QLinearConv": 3, "QGemm": 1}),
    "residual": (Residual, {"QLinearConv": 2, "QLinearAdd": 1, "QGemm": 1}),
    "gated": (Gated, {"QLinearConv": 3}),
    "twice": (Twice, {"QLinearConv": 1, "QGemm": 1}),  # the other is an output, which stays in float32
}


def written(network: nn.Module, path: Path, **bits: int) -> tuple[FakeQuantizedNetwork, Tensor]:
    """Write a network in integers, and return it fake quantised, with images."""
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    flat = FlatNetwork(network.eval(), images[:1])
    program = torch.export.export(flat, (images,), dynamic_shapes=(({0: torch.export.Dim("batch", min=1)},),))
    fake = fake_quantized(program, [(images,)], **bits).eval()
    spec = replace(flat.signature.inputs[0], dynamic=(0,))
    write_qdq(fake, images[:1], replace(flat.signature, inputs=(spec,)), path)
    return fake, images


def session(path: Path, optimize: bool) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def in_openvino(path: Path, images: Tensor) -> Tensor | None:
    """Return what OpenVINO computes, None if it isn't installed."""
    if importlib.util.find_spec("openvino") is None:
        return None
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled(images.numpy())[0])


@pytest.mark.parametrize(("name", "weight_bits"), [*((name, 8) for name in NETWORKS), ("residual", 7)])
def test_file_computes_the_simulation_on_integers(name: str, weight_bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, integer = NETWORKS[name]
    network, path = make(), tmp_path / "quantized.onnx"
    fake, images = written(network, path, weight_bits=weight_bits)
    with torch.no_grad():
        ours, exact = fake(images), FlatNetwork(network, images)(images)[0]
    step = (exact.max() - exact.min()) / 255
    assert 0 < (ours - exact).abs().max() < 40 * step
    plain, fast = (
        torch.from_numpy(session(path, how).run(None, {"input": images.numpy()})[0]) for how in (False, True)
    )
    assert (plain - ours).abs().max() < 0.1 * step
    assert (fast - ours).abs().max() < 6 * step
    if (theirs := in_openvino(path, images)) is not None:
        assert (theirs - ours).abs().max() < 6 * step
    model = onnx.load(path)
    assert model.opset_import[0].version >= 19
    stored = [v for v in model.graph.initializer if v.data_type == onnx.TensorProto.INT8 and len(v.dims) > 1]
    assert len(stored) == sum(p.dim() > 1 for p in network.parameters())
    assert all(abs(onnx.numpy_helper.to_array(value)).max() == 2 ** (weight_bits - 1) - 1 for value in stored)
    counts = Counter(node.op_type for node in onnx.load(path.with_suffix(".optimized")).graph.node)
    assert {key: counts[key] for key in integer} == integer


def test_more_bits_than_a_file_holds_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        written(Digits(), tmp_path / "quantized.onnx", weight_bits=9)
    assert not (tmp_path / "quantized.onnx").exists()


# --- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A network that is right on most of the digits."""
    from unbranch.train import fit
    from unbranch.train.settings import Optimizer

    torch.manual_seed(0)
    how = training_data("digits", Digits(), 3, 0)
    recipe = replace(how.recipe, optimizer=Optimizer(name="adamw", lr=0.01))
    return fit(Digits(), recipe, how.data, tmp_path_factory.mktemp("trained") / "run").eval()


def accuracy(network: nn.Module) -> float:
    samples = load_samples("digits", Digits(), limit=1000)
    assert samples.labels is not None
    with torch.no_grad():
        return float((network(samples.batch(1000)[0]).argmax(1) == samples.labels).float().mean())


@one_process
def test_training_recovers_accuracy_that_rounding_costs(trained: nn.Module, tmp_path: Path) -> None:
    from unbranch.train import fit

    calibration = load_samples("digits", trained, limit=100, train=True)
    source = write_source(FlatNetwork(trained, calibration.batch(1)), tmp_path, targets=[TorchTarget()])
    fake = fake_quantized(torch.export.load(source.program), calibration.batches(50), weight_bits=2).eval()
    before, how = accuracy(fake), training_data("digits", trained, 1, 0)
    after = accuracy(fit(fake, how.recipe, how.data, tmp_path / "run"))
    assert accuracy(trained) > 0.85
    assert before < accuracy(trained) - 0.1
    assert after > before + 0.03


@pytest.fixture
def only_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all rungs of the ladder but the last away."""
    monkeypatch.setattr(ladder, "attempts", _no_attempts)


def _no_attempts(_: Any, __: Any, ___: Any, settings: Any, scratch: Path) -> Iterator[Any]:
    from unbranch.runtimes.arrays import write_arrays

    write_arrays(scratch / "calibration.npz", [[v.numpy() for v in call] for call in settings.calibration.calls])
    yield from ()


def run(model: nn.Module, output: Path, **changes: Any) -> Any:
    settings = {
        "to": "onnx,tensorrt",
        "int8": True,
        "epochs": 1,
        "max_drop": 5,
        "calibration": 50,
        "rounds": 0,
        **changes,
    }
    return deploy(model, settings.pop("data", "digits"), output, **settings)


def interrupt_at(step: int) -> Callable[[str, int, int], None]:
    """Send Ctrl-C in a step of the training."""

    def on_progress(what: str, done: int, total: int) -> None:
        if "training" in what and done >= step:
            signal.raise_signal(signal.SIGINT)

    return on_progress


@pytest.fixture(scope="module")
def deployed(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The deployment of a network that was trained in integers."""
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "attempts", _no_attempts)
        result = run(trained, tmp_path_factory.mktemp("deployed"), to="onnx,tensorrt")
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    return result


@one_process
def test_trained_network_is_in_the_files_of_all_targets(deployed: Any) -> None:
    assert deployed.ladder.chosen.trained
    assert deployed.ladder.chosen.drop <= 5
    assert {a.name: a.status for a in deployed.artifacts} == {
        "onnx": "verified", "onnx int8": "verified", "tensorrt": "not verified", "tensorrt int8": "not verified",
    }  # fmt: skip
    assert sorted(p.name for p in (deployed.directory / "qat").iterdir()) == [
        "metrics.jsonl",
        "recipe.yaml",
        "start.json",
    ]
    assert read_result(deployed.directory) == deployed


@pytest.mark.usefixtures("only_training")
@one_process
def test_interrupted_training_continues_with_the_same_bits(deployed: Any, trained: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        run(trained, tmp_path, on_progress=interrupt_at(5))
    assert [path.name for path in tmp_path.iterdir()] == ["qat"]  # nothing half-written
    with pytest.raises(InputError):  # another training
        run(trained, tmp_path, epochs=2)
    run(trained, tmp_path)
    for name in ("onnx-int8/model.onnx", "qat/recipe.yaml"):
        assert (tmp_path / name).read_bytes() == (deployed.directory / name).read_bytes()
    lines = (tmp_path / "qat" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)
    assert steps[-1] == 1438 // 64


@one_process
def test_ladder_ends_before_training_if_it_can(trained: nn.Module, tmp_path: Path) -> None:
    result = run(trained, tmp_path, max_drop=100, to="onnx")
    assert [rung.trained for rung in result.ladder.rungs] == [False]
    assert not (tmp_path / "qat").exists()


def unusable() -> Iterator[Any]:
    images, labels = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    yield pytest.param({"data": images}, id="no labels")
    yield pytest.param({"data": (images, labels)}, id="no training images")
    yield pytest.param({"data": None}, id="random numbers")
    yield pytest.param({"data": "no-such-data"}, id="no data set")
    yield pytest.param({"epochs": -1}, id="epochs")
    yield pytest.param({"int8": False}, id="float")
    yield pytest.param({"model": Digits(classes=9)}, id="fewer classes")
    yield pytest.param({"model": nn.Sequential(nn.Conv2d(1, 10, 3))}, id="no classifier")


@pytest.mark.parametrize("given", list(unusable()))
def test_what_can_not_be_trained_is_one_error_and_no_file(given: dict[str, Any], tmp_path: Path) -> None:
    model = given.pop("model", None) or Digits()
    model.pretrained_cfg = {"input_size": (1, 8, 8)}
    with pytest.raises(InputError) as error:
        run(model, tmp_path / "out", **given)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("content", ["mine", "damaged"])
def test_directory_of_others_is_not_touched(content: str, tmp_path: Path) -> None:
    (tmp_path / "qat").mkdir()
    name = {"mine": "mine.txt", "damaged": "start.json"}[content]
    (tmp_path / "qat" / name).write_text("{")
    with pytest.raises(InputError):
        run(Digits(), tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["qat", name]


def test_folder_of_classes_is_split_before_it_is_measured(tmp_path: Path) -> None:
    from unbranch.train.context import prepare

    image = pytest.importorskip("PIL.Image")
    for number in range(20):
        path = tmp_path / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        image.new("L", (8, 8), 12 * number).save(path)
    model = Digits(classes=2)
    how = training_data(tmp_path, model, 1, 0)
    calibration, evaluation = (load_samples(tmp_path, model, limit=99, train=t, split=True) for t in (True, False))
    assert (len(how.data.train), len(calibration), len(evaluation)) == (16, 16, 4)
    assert how.recipe.data.batch_size == 16
    values = {float(call[0].mean()) for call in calibration.calls}
    assert values.isdisjoint(float(call[0].mean()) for call in evaluation.calls)
    trained_with = next(iter(prepare(how.recipe, how.data, model).validation))["image"]
    assert torch.allclose(trained_with.sort(0).values, evaluation.batch(4)[0].sort(0).values, atol=1e-5)


def test_settings_of_a_run_go_on_at_a_small_rate(tmp_path: Path) -> None:
    from unbranch.train import load_recipe, to_yaml

    changes = ["optimizer.lr=0.3", "ema.decay=0.9", "training.channels_last=true", "augment.padding=2"]
    recipe = load_recipe("digits", changes)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    (tmp_path / "result.json").write_text(json.dumps({"data": "digits"}))
    found = training_data(tmp_path, Digits(), 4, 7)
    assert found.data.name == "digits"
    assert found.recipe.augment == recipe.augment
    assert found.recipe.optimizer.lr == pytest.approx(0.003)
    assert (found.recipe.schedule.epochs, found.recipe.seed, found.recipe.ema) == (4, 7, None)
    (tmp_path / "copy.yaml").write_text(to_yaml(found.recipe))
    assert load_recipe(tmp_path / "copy.yaml") == found.recipe
