"""Files in and out: weights inside or beside the file, written completely or not at all, and the commands."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import set_external_data
from typer.testing import CliRunner

import unbranch as ub
from tests.onnx.corpus import ROWS
from tests.onnx.evaluate import difference, feeds, run, unit
from tests.onnx.graphs import Graph
from tests.onnx.table import Left
from unbranch import cli

pytest.importorskip("unbranch.onnx", exc_type=ImportError)

NAME = "two RepVGG blocks and a strided one"
LARGE = 2**31 + 2**22  # bytes


def source() -> ModelProto:
    return ROWS[NAME].make()


def save_external(model: ModelProto, path: Path, location: str = "weights.bin") -> None:
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)


def assert_same_outputs(first: Any, second: ModelProto) -> None:
    model = onnx.load(first) if isinstance(first, Path) else first
    for seed, sizes in enumerate(ROWS[NAME].sizes):
        inputs = feeds(model, sizes, seed)
        assert difference(run(model, inputs), run(second, inputs)) <= 64 * unit(second)


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_saved_model_is_the_same(tmp_path: Path) -> None:
    plain = ub.onnx.collapse(source())
    ub.onnx.save(plain, tmp_path / "plain.onnx")
    assert onnx.load(tmp_path / "plain.onnx") == plain
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    path.write_text("something else")
    ub.onnx.save(source(), path)
    assert onnx.load(path) == source()
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    save_external(source(), tmp_path / "model.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    plain = ub.onnx.collapse(tmp_path / "model.onnx")
    assert Left.of(plain).within(ROWS[NAME].left)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    target = tmp_path / "out"
    target.mkdir()
    ub.onnx.save(plain, target / "plain.onnx")
    onnx.checker.check_model(str(target / "plain.onnx"), full_check=True)
    assert_same_outputs(target / "plain.onnx", source())


def test_weights_beside_the_file_stay_beside_it(tmp_path: Path) -> None:
    """The command writes as it has read, and names its files without a folder."""
    save_external(source(), tmp_path / "model.onnx")
    target = tmp_path / "out"
    target.mkdir()
    assert command("collapse", tmp_path / "model.onnx", "-o", target / "plain.onnx").exit_code == 0
    found = onnx.load(target / "plain.onnx", load_external_data=False)
    beside = [t for t in found.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert beside
    locations = {entry.value for tensor in beside for entry in tensor.external_data if entry.key == "location"}
    assert {*locations, "plain.onnx"} == {path.name for path in target.iterdir()}
    assert_same_outputs(target / "plain.onnx", source())


def test_collapsing_in_place(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save_external(source(), path)
    assert command("collapse", path, "-o", path).exit_code == 0
    assert_same_outputs(path, source())
    assert Left.of(onnx.load(path)).within(ROWS[NAME].left)


def test_files_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    save_external(source(), tmp_path / "models" / "model.onnx")
    monkeypatch.chdir(tmp_path)
    for path in ("models/model.onnx", Path("models") / "model.onnx", os.fspath(tmp_path / "models" / "model.onnx")):
        assert Left.of(ub.onnx.collapse(path)).within(ROWS[NAME].left)


def test_nothing_is_left_if_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file and its weights are still there if the disk is full at the last step."""
    path = tmp_path / "plain.onnx"
    save_external(source(), path)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ub.errors.UnbranchError):
            ub.onnx.save(source(), path)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_collapse_command(tmp_path: Path) -> None:
    onnx.save(source(), tmp_path / "model.onnx")
    result = command("collapse", tmp_path / "model.onnx", "-o", tmp_path / "plain.onnx")
    assert result.exit_code == 0
    assert str(tmp_path / "plain.onnx") in result.output.replace("\n", "")
    assert onnx.load(tmp_path / "plain.onnx") == ub.onnx.collapse(source())
    as_json = command("collapse", tmp_path / "model.onnx", "-o", tmp_path / "plain.onnx", "--json")
    values = json.loads(as_json.stdout)
    assert values["after"]["layers"]["convolution"] == ROWS[NAME].left.convolutions
    assert values["files"] == [str(tmp_path / "plain.onnx")]


def test_explain_command_writes_nothing(tmp_path: Path) -> None:
    onnx.save(source(), tmp_path / "model.onnx")
    assert command("explain", tmp_path / "model.onnx").exit_code == 0
    values = json.loads(command("explain", tmp_path / "model.onnx", "--json").stdout)
    assert len(values["merges"]) >= ROWS[NAME].left.convolutions
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_verify_command_says_whether_they_are_the_same(tmp_path: Path) -> None:
    plain = ub.onnx.collapse(source())
    other = ModelProto()
    other.CopyFrom(plain)
    tensor = other.graph.initializer[0]
    tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1.01).tobytes()
    for name, model in (("model", source()), ("plain", plain), ("other", other)):
        onnx.save(model, tmp_path / f"{name}.onnx")
    assert command("verify", tmp_path / "model.onnx", tmp_path / "plain.onnx").exit_code == 0
    assert command("verify", tmp_path / "model.onnx", tmp_path / "other.onnx").exit_code == 1


def test_verify_command_takes_photos(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    plain = ub.onnx.collapse(source())
    for name, model in (("model", source()), ("plain", plain)):
        onnx.save(model, tmp_path / f"{name}.onnx")
    photos = tmp_path / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for number, size in enumerate(((40, 30), (32, 48))):
        image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(photos / f"{number}.png")
    models = (tmp_path / "model.onnx", tmp_path / "plain.onnx")
    assert command("verify", *models, "--data", photos).exit_code == 0
    (tmp_path / "none").mkdir()
    for data in ("none", "missing"):
        result = command("verify", *models, "--data", tmp_path / data)
        assert result.exit_code != 0
        assert "Traceback" not in result.output


def large(path: Path) -> None:
    """A model of more than 2 GB, nearly all of it a table in a sparse file that nothing merges."""
    g = Graph()
    rows = LARGE // 4 // 2**10
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[rows, 2**10], raw_data=b"")
    set_external_data(table, "table.bin", offset=0, length=rows * 2**12)
    table.ClearField("raw_data")
    with (path.parent / "table.bin").open("wb") as file:
        file.truncate(rows * 2**12)
    y = g.sum(g.conv_norm(g.input("N", 3, "H", "W"), 3, 3), g.conv_norm("x", 3, 3, (1, 1)))
    g.output(g.relu(y))
    model = g.model()
    model.graph.initializer.append(table)
    model.graph.node.append(helper.make_node("Gather", ["table", "index"], ["row"], "/gather"))
    model.graph.input.append(helper.make_tensor_value_info("index", TensorProto.INT64, [1]))
    model.graph.output.append(helper.make_tensor_value_info("row", TensorProto.FLOAT, [1, 2**10]))
    path.write_bytes(model.SerializeToString())


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--all"):
        pytest.skip("takes ten gigabytes of memory; runs with --all")
    large(tmp_path / "model.onnx")
    target = tmp_path / "out"
    target.mkdir()
    assert command("collapse", tmp_path / "model.onnx", "-o", target / "plain.onnx").exit_code == 0
    found = onnx.load(target / "plain.onnx", load_external_data=False)
    assert Left.of(found).within(Left(1, 0, 0, 3))
    assert sum(path.stat().st_size for path in target.iterdir()) > 2**31
    (table,) = (tensor for tensor in found.graph.initializer if tensor.name == "table")
    assert table.data_location == TensorProto.EXTERNAL
    onnx.checker.check_model(str(target / "plain.onnx"))
