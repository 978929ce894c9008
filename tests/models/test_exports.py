"""Every network, in both forms, goes through PyTorch's doors: export, tracing, compiling, ONNX."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.zoo_rows import KINDS, ROWS, Row, collapsed, trained
from unbranch.deploy import export_onnx

FORMS = {"training": trained, "collapsed": collapsed}


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "collapsed") for name in KINDS), ("repvggplus_l2pse", "training"), ("resnet18", "training")],
)
@torch.no_grad()
def test_exported_program_takes_any_batch(name: str, form: str) -> None:
    row, network = ROWS[name], FORMS[form](name)
    x = row.images(3).double()
    exported = torch.export.export(network, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.allclose(exported.module()(x), network(x), rtol=1e-9)


@torch.no_grad()
def test_exported_program_takes_images_of_any_size() -> None:
    row, network = ROWS["resnet18"], collapsed("resnet18")
    sides = {2: torch.export.Dim("height", min=33, max=512), 3: torch.export.Dim("width", min=33, max=512)}
    exported = torch.export.export(network, (row.images(1).double(),), dynamic_shapes=(sides,)).module()
    for size in ((33, 96), (81, 40)):
        other = row.images(1, size=size).double()
        assert torch.allclose(exported(other), network(other), rtol=1e-9)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
@torch.no_grad()
def test_collapsed_network_is_traced_without_a_warning(row: Row) -> None:
    x = row.images(3).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`torch.jit.trace", DeprecationWarning)
        warnings.filterwarnings("ignore", "`torch.jit.trace", FutureWarning)
        traced = torch.jit.trace(collapsed(row.name), x[:2], check_trace=False)
    assert torch.allclose(traced(x), trained(row.name)(x), rtol=1e-9)


@pytest.mark.parametrize("name", ["repvgg_a0", "cifar_quick"])
@torch.no_grad()
def test_compiled_without_a_break_it_gives_the_same(name: str) -> None:
    network, x = copy.deepcopy(collapsed(name)), ROWS[name].images().double()
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(network, backend="eager", fullgraph=True)(x), network(x), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "options"), [("collapsed", {}), ("training", {"features_only": True})], ids=["classifier", "backbone"]
)
def test_onnx_file_computes_the_same(form: str, options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = copy.deepcopy(FORMS[form]("cifar_quick", block="acb", **options)).float()
    written = export_onnx(network, ROWS["cifar_quick"].images(1), tmp_path / "net.onnx")
    assert written.max_rel is not None
    assert written.max_rel < 1e-4
