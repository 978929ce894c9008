"""Only files that compute the same function in their own runtime are kept, and never half of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.deploy import targets
from unbranch.blocks import RepVGG
from unbranch.deploy import TARGETS, deploy, read_result
from unbranch.deploy.store import MANIFEST
from unbranch.errors import InputError

ALL = {
    t.name: t
    for t in vars(targets).values()
    if isinstance(t, type) and issubclass(t, targets.Good) and t is not targets.Sleeps
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, target in ALL.items():
        monkeypatch.setitem(TARGETS, name, target)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(RepVGG(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


def test_each_outcome_is_a_row_and_only_good_files_are_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    images = torch.randn(3, 3, 8, 9)
    result = deploy(network(), images, tmp_path, to=ALL, rounds=0)
    assert capfd.readouterr() == ("", "")
    status = {artifact.target: artifact.status for artifact in result.artifacts}
    assert status == {
        "good": "verified", "one": "verified", "half": "differs", "second": "differs", "setting": "differs",
        "nan": "differs", "fewer": "differs", "raises": "failed", "dies": "failed", "dies-later": "failed",
        "nothing": "failed", "chatters": "verified", "missing": "unavailable", "elsewhere": "not verified",
    }  # fmt: skip
    assert names(tmp_path) == {
        MANIFEST, "model.safetensors", "good", "good/model.pt2", "one", "one/model.pt2", "chatters",
        "chatters/model.pt2", "elsewhere-not-verified", "elsewhere-not-verified/model.pt2",
    }  # fmt: skip
    by_name = {artifact.target: artifact for artifact in result.artifacts}
    assert {a.target for a in result.failed} == {n for n, s in status.items() if s not in ("verified", "not verified")}
    assert all(by_name[name].reason for name in ALL if status[name] != "verified")
    assert "Foo" in by_name["raises"].reason
    assert "about to die" in by_name["dies"].reason
    assert "pip install no-such-runtime" in by_name["missing"].reason
    assert by_name["half"].error is not None
    assert 1e-5 < by_name["half"].error < 1e-2
    assert by_name["good"].error is not None
    assert by_name["good"].error < 1e-6
    assert read_result(tmp_path) == result


def test_file_is_the_collapsed_network_for_any_batch(tmp_path: Path) -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = deploy(model, torch.randn(2, 3, 8, 9), tmp_path / "new" / "folder", to="good", rounds=1, batches=(1, 3))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (artifact,) = result.artifacts
    assert artifact.path is not None
    program = torch.export.load(artifact.path)
    assert sum("conv" in str(node.target) for node in program.graph.nodes) == 1
    x = torch.randn(4, 3, 8, 9)
    assert torch.allclose(program.module()(x)[0], model.eval()(x), atol=1e-5)
    assert torch.allclose(ub.load(result.directory / "model.safetensors", into=network())(x), model(x), atol=1e-5)
    assert sorted((t.batch, t.setting) for t in artifact.timings) == [(1, "default"), (3, "default")]
    assert all(0 < t.median_ms <= t.p90_ms and t.cold_start_ms > 0 for t in artifact.timings)
    assert result.best("latency") is artifact
    assert str(artifact.path) in result.recommendation


def test_batch_of_one_is_timed_with_one_image_only(tmp_path: Path) -> None:
    result = deploy(network(), torch.randn(2, 3, 8, 8), tmp_path, to="one", rounds=1, batches=(1, 2))
    assert [t.batch for t in result.artifacts[0].timings] == [1]


class Containers(nn.Module):
    """Takes a dictionary and a list, returns nested containers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: dict[str, Tensor], others: list[Tensor]) -> dict[str, Any]:
        y = self.conv(x["image"])
        return {"maps": [y, y.relu()], "sum": others[0] + others[1], "count": 3}


def test_containers_of_tensors_go_in_and_out(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Containers()

        def forward(self, image: Tensor, first: Tensor, second: Tensor) -> Any:
            return self.inner({"image": image}, [first, second])

    tensors = (torch.randn(2, 3, 8, 8), torch.randn(2, 5), torch.randn(2, 5))
    result = deploy(Flat(), tensors, tmp_path, to="good,onnx", rounds=0)
    assert [a.status for a in result.artifacts] == ["verified", "verified"]
    assert [spec.name for spec in result.signature.inputs] == ["image", "first", "second"]
    assert [spec.name for spec in result.signature.outputs] == ["maps_0", "maps_1", "sum"]


class FixedBatch(nn.Module):
    """Works for a batch of one only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 3, -1).mean(2)


def test_network_for_a_batch_of_one_is_exported_for_it(tmp_path: Path) -> None:
    result = deploy(FixedBatch(), torch.randn(1, 3, 8, 8), tmp_path, to="good", rounds=1, batches=(1, 2))
    (artifact,) = result.artifacts
    assert artifact.ok
    assert result.signature.inputs[0].dynamic == ()
    assert [t.batch for t in artifact.timings] == [1]


def test_images_of_any_size_are_taken_if_asked_for(tmp_path: Path) -> None:
    result = deploy(network(), torch.randn(2, 3, 8, 9), tmp_path, to="good", rounds=0, dynamic_size=True)
    assert result.signature.inputs[0].dynamic == (0, 2, 3)
    assert result.artifacts[0].path is not None
    program = torch.export.load(result.artifacts[0].path)
    assert program.module()(torch.randn(1, 3, 20, 31))[0].shape == (1, 5)


class Undecided(nn.Module):
    """Can't be exported: its path depends on what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x * 3


def test_network_that_can_not_be_exported_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        deploy(Undecided(), torch.randn(2, 3, 8, 8), tmp_path / "out", to="good", rounds=0)
    assert not list(tmp_path.iterdir())


def first_run(directory: Path) -> dict[str, bytes]:
    deploy(network(), torch.randn(2, 3, 8, 8), directory, to="good,one", rounds=0)
    return {name: (directory / name).read_bytes() for name in names(directory) if (directory / name).is_file()}


def test_second_deployment_replaces_the_first(tmp_path: Path) -> None:
    first = first_run(tmp_path)
    result = deploy(network(1), torch.randn(2, 3, 8, 8), tmp_path, to="good", rounds=0)
    assert names(tmp_path) == {MANIFEST, "model.safetensors", "good", "good/model.pt2"}
    assert (tmp_path / "good/model.pt2").read_bytes() != first["good/model.pt2"]
    assert read_result(tmp_path) == result


ALL_FAIL = ("raises", "half", "missing", "dies-later,fewer")


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("to", ALL_FAIL)
def test_deployment_without_any_file_leaves_everything_as_it_was(tmp_path: Path, to: str, earlier: bool) -> None:
    directory = tmp_path / "out"
    before = first_run(directory) if earlier else {}
    result = deploy(network(1), torch.randn(2, 3, 8, 8), directory, to=to, rounds=1)
    assert result.failed == result.artifacts
    assert not result.usable
    assert result.notes
    assert {n: (directory / n).read_bytes() for n in names(directory) if (directory / n).is_file()} == before
    assert directory.exists() == earlier


def test_deployment_that_can_not_be_verified_here_replaces_the_first(tmp_path: Path) -> None:
    first_run(tmp_path)
    result = deploy(network(1), torch.randn(2, 3, 8, 8), tmp_path, to="elsewhere,raises", rounds=0)
    assert [a.target for a in result.usable] == ["elsewhere"]
    assert read_result(tmp_path) == result


STEPS = ("collapsing", "computing", "converting to good", "converting to one", "loading good", "timing good")


@pytest.mark.parametrize("step", STEPS)
def test_interrupted_deployment_leaves_everything_as_it_was(tmp_path: Path, step: str) -> None:
    before: dict[str, bytes] = {}
    if step.startswith("converting"):  # into a directory that has files
        before = first_run(tmp_path)
        (tmp_path / "mine.txt").write_text("mine")
        before["mine.txt"] = b"mine"

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith(step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy(network(1), torch.randn(2, 3, 8, 8), tmp_path, to="good,one", rounds=1, on_progress=interrupt)
    assert {n: (tmp_path / n).read_bytes() for n in names(tmp_path) if (tmp_path / n).is_file()} == before
    assert not [name for name in names(tmp_path) if ".deploy" in name]


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "precious").write_text("x")
    with pytest.raises(InputError):
        deploy(network(), torch.randn(2, 3, 8, 8), tmp_path, to="good", rounds=0)
    assert names(tmp_path) == {"good", "good/precious"}


def unusable() -> Iterator[Any]:
    images = torch.randn(2, 3, 8, 8)
    yield pytest.param({"to": "god"}, id="unknown target")
    yield pytest.param({"to": ""}, id="no target")
    yield pytest.param({"images": 0}, id="no images")
    yield pytest.param({"threads": -1}, id="threads")
    yield pytest.param({"batches": (1, 0)}, id="batch")
    yield pytest.param({"rounds": -1}, id="rounds")
    yield pytest.param({"data": images[:, 0]}, id="images without channels")
    yield pytest.param({"data": images[:0]}, id="empty batch")
    yield pytest.param({"data": [["images"]]}, id="batches of text")
    yield pytest.param({"data": 3}, id="no data")
    yield pytest.param({"data": "/no/such/folder"}, id="no folder")
    yield pytest.param({"output": "/dev/null/x"}, id="no directory")
    yield pytest.param({"output": __file__}, id="a file")


@pytest.mark.parametrize("given", list(unusable()))
def test_unusable_argument_is_one_error(tmp_path: Path, given: dict[str, Any]) -> None:
    output = given.pop("output", tmp_path)
    data = given.pop("data", torch.randn(2, 3, 8, 8))
    with pytest.raises(InputError) as error:
        deploy(network(), data, output, **{"to": "good", "rounds": 0, **given})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"artifacts": 3}), json.dumps({"artifacts": [{}]})])
def test_damaged_manifest_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError):
        read_result(tmp_path)
    with pytest.raises(InputError):
        ub.deploy.benchmark(tmp_path)


def test_benchmark_times_what_is_there(tmp_path: Path) -> None:
    first_run(tmp_path)
    manifest = (tmp_path / MANIFEST).read_bytes()
    result = ub.deploy.benchmark(tmp_path, threads=[1, 2], batches=[1, 2], rounds=1)
    found = {a.target: {(t.threads, t.batch) for t in a.timings} for a in result.artifacts}
    assert found == {"good": {(1, 1), (1, 2), (2, 1), (2, 2)}, "one": {(1, 1), (2, 1)}}
    assert (tmp_path / MANIFEST).read_bytes() == manifest
    with pytest.raises(InputError):
        ub.deploy.benchmark(tmp_path, rounds=0)


def test_artifact_that_is_gone_is_a_row(tmp_path: Path) -> None:
    first_run(tmp_path)
    (tmp_path / "good" / "model.pt2").unlink()
    result = ub.deploy.benchmark(tmp_path, rounds=1)
    gone, there = result.artifacts
    assert gone.timings == ()
    assert gone.reason
    assert there.timings
