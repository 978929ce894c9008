"""Files and arguments that can't be used: one error each, nothing written, nothing read outside the model's folder."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto
from torch import nn
from typer.testing import CliRunner

import unbranch as ub
from tests.onnx.bad_files import FILES, external, good
from tests.onnx.graphs import Graph
from unbranch import cli
from unbranch.errors import UnbranchError

pytest.importorskip("unbranch.onnx", exc_type=ImportError)

MOST_MEMORY = 64 * 2**20  # bytes, for a file of some kilobytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data beside it that no model may read."""
    folder = tmp_path / "models"
    folder.mkdir()
    content = np.ones(4 * 4 * 9, np.float32).tobytes()
    (tmp_path / "secret.bin").write_bytes(content)
    (folder / "there.bin").write_bytes(content)
    (folder / "short.bin").write_bytes(content[:40])
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", FILES)
def test_file_is_one_error(name: str, folder: Path) -> None:
    path = folder / "model.onnx"
    FILES[name](path)
    before = contents(folder.parent)
    tracemalloc.start()
    try:
        for function in (ub.onnx.collapse, ub.onnx.explain, ub.collapse):
            with pytest.raises(UnbranchError) as caught:
                function(path)
            assert "\n" not in str(caught.value).strip()
        for pair in ((path, good()), (good(), path)):
            with pytest.raises(UnbranchError):
                ub.onnx.verify(*pair)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert contents(folder.parent) == before


@pytest.mark.parametrize("name", ["truncated", "cyclic", "external data outside the folder", "huge size"])
@pytest.mark.parametrize("command", ["collapse", "explain", "verify"])
def test_command_is_one_line_and_writes_nothing(name: str, command: str, folder: Path) -> None:
    path = folder / "model.onnx"
    FILES[name](path)
    onnx.save(good(), folder / "good.onnx")
    before = contents(folder.parent)
    more = {"collapse": ["-o", str(folder / "plain.onnx")], "verify": [str(folder / "good.onnx")], "explain": []}
    result = CliRunner().invoke(cli.app, [command, str(path), *more[command]], catch_exceptions=False)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    assert contents(folder.parent) == before


@pytest.mark.parametrize(
    "name", ["cyclic", "made twice", "negative size", "fewer bytes", "huge product", "unknown opset", "empty graph"]
)
def test_model_in_memory_is_one_error(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / "model.onnx")
    source = onnx.load(tmp_path / "model.onnx")
    before = source.SerializeToString()
    with pytest.raises(UnbranchError):
        ub.onnx.collapse(source)
    assert source.SerializeToString() == before


NO_MODELS: dict[str, Any] = {
    "none": None, "number": 3, "bytes": b"\x08\x08", "module": nn.Conv2d(1, 1, 1), "graph": good().graph,
    "list": [good()], "missing file": "/nowhere/model.onnx", "folder": os.curdir, "text": "no file",
    "null in the name": "a\0b.onnx", "empty name": "",
}  # fmt: skip


@pytest.mark.parametrize("name", NO_MODELS)
def test_no_model_is_one_error(name: str) -> None:
    for function in (ub.onnx.collapse, ub.onnx.explain):
        with pytest.raises(UnbranchError):
            function(NO_MODELS[name])
    with pytest.raises(UnbranchError):
        ub.onnx.verify(good(), NO_MODELS[name])


X = np.zeros((2, 4, 8, 8), np.float32)
WRONG_INPUTS: dict[str, Any] = {
    "array": X,
    "tuple": (X,),
    "empty": {},
    "another name": {"y": X},
    "one too many": {"x": X, "y": X},
    "channels": {"x": X[:, :3]},
    "rank": {"x": X[0]},
    "type": {"x": X.astype(np.float64)},
    "list": {"x": X.tolist()},
    "none": {"x": None},
    "objects": {"x": X.astype(object)},
    "not finite": {"x": X * np.nan},
}


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_inputs_that_do_not_fit_are_one_error(name: str) -> None:
    model = good()
    for function in (ub.onnx.collapse, ub.onnx.explain):
        with pytest.raises(UnbranchError):
            function(model, WRONG_INPUTS[name])
    with pytest.raises(UnbranchError):
        ub.onnx.verify(model, good(), WRONG_INPUTS[name])


def other_interfaces() -> dict[str, ModelProto]:
    """Models that can't be compared with the good one."""
    names, more, channels = Graph(), Graph(), Graph()
    names.output(names.relu(names.conv(names.input("N", 4, "H", "W", name="image"), 4, 4)))
    y = more.conv(more.input("N", 4, "H", "W"), 4, 4)
    more.output(y, more.relu(y))
    channels.output(channels.relu(channels.conv(channels.input("N", 3, "H", "W"), 3, 4)))
    return {"names": names.model(), "outputs": more.model(), "channels": channels.model()}


@pytest.mark.parametrize("name", other_interfaces())
def test_models_of_other_interfaces_are_not_the_same(name: str) -> None:
    try:
        found = ub.onnx.verify(good(), other_interfaces()[name])
    except UnbranchError:
        return
    assert not found.same


@pytest.mark.parametrize("place", ["missing/plain.onnx", ".", "file/plain.onnx"])
def test_place_that_can_not_be_written_is_one_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    before = contents(tmp_path)
    with pytest.raises(UnbranchError):
        ub.onnx.save(good(), tmp_path / place)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("model", [None, good().graph, b"", "model.onnx"])
def test_only_models_are_saved(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UnbranchError):
        ub.onnx.save(model, tmp_path / "plain.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_good_model_is_good(folder: Path) -> None:
    """What the changes change; and data beside a model is read."""
    assert ub.onnx.collapse(good()).graph.node
    model = good()
    external("there.bin")(model)
    assert model.graph.initializer[0].data_location == TensorProto.EXTERNAL
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert ub.onnx.collapse(folder / "model.onnx").graph.node
