"""A damaged or hostile file gives one clear error and executes nothing, or what it held is all there."""

from __future__ import annotations

import itertools
import random
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import unbranch as ub
from tests.models.damage import File, damaged_files, manifests, with_steps
from tests.models.unfit_steps import FITTING_STEPS, UNFIT_STEPS
from tests.networks import randomised
from unbranch.errors import CheckpointError
from unbranch.factory import create_model
from unbranch.provenance import provenance_of, replay

pytestmark = pytest.mark.xdist_group("damaged files")  # one process makes the files, and the networks of the hints

MEMORY = 1 << 20  # KiB that all of them together may add to the most that the process ever had


def network() -> nn.Module:
    return create_model("resnet8_cifar", block="acb", width=2)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[File]:
    """Ours, collapsed and as trained, then those of others."""
    folder = tmp_path_factory.mktemp("good")
    trained = randomised(network())
    state = trained.state_dict()
    ub.save(ub.collapse(trained), folder / "0.safetensors")
    ub.save(trained, folder / "1.safetensors")
    save_file(state, folder / "2.safetensors")
    torch.save(state, folder / "3.pth")
    torch.save({"state_dict": state, "epoch": 3}, folder / "4.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": state}, folder / "5.pt")
    files = sorted(folder.iterdir())
    for path in files:
        ub.load(path, into=network())
    return [(path.suffix, path.read_bytes()) for path in files]


class Feeder:
    """Loads files one by one and counts what becomes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marker = folder, folder / "executed"
        self.shapes = {
            frozenset((key, value.shape) for key, value in made.state_dict().items())
            for made in (network(), ub.collapse(randomised(network())))
        }
        self.refused = self.loaded = 0

    def feed(self, what: str, file: File, into: nn.Module | None) -> None:
        path = self.folder / f"file{file[0]}"
        path.write_bytes(file[1])
        state, error = _outcome(path, into)
        assert not self.marker.exists(), what
        if error is None:
            assert frozenset((key, value.shape) for key, value in state.items()) in self.shapes, what
            self.loaded += 1
        else:
            assert type(error) is CheckpointError, what
            assert str(path) in str(error), what
            assert str(error).isprintable(), what
            assert len(str(error)) < 1200, what
            self.refused += 1


def _outcome(path: Path, into: nn.Module | None) -> tuple[dict[str, Tensor], Exception | None]:
    try:
        return ub.load(path, into=into).state_dict(), None
    except Exception as error:
        return {}, error


@pytest.fixture
def step(request: pytest.FixtureRequest) -> int:
    """Every so many files are tried; with --all every one."""
    return 1 if request.config.getoption("--all") else 9


@pytest.mark.slow
def test_a_thousand_damaged_files_give_one_clear_error_each(tmp_path: Path, good: list[File], step: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    feeder, into = Feeder(tmp_path), network()
    for what, file in itertools.islice(damaged_files(good, str(feeder.marker)), None, None, step):
        feeder.feed(what, file, into)
    assert feeder.refused + feeder.loaded >= 1000 // step
    assert feeder.refused > 600 // step
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@pytest.mark.slow
def test_hostile_manifests_give_one_clear_error_each(tmp_path: Path, good: list[File], step: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    feeder = Feeder(tmp_path)
    for suffix, content in good[:2]:
        for what, edited in itertools.islice(manifests(content, random.Random(0)), None, None, step):
            feeder.feed(what, (suffix, edited), None)
    assert feeder.refused + feeder.loaded >= 700 // step
    assert feeder.refused > 600 // step
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    ub.save(randomised(create_model("resnet8_cifar", width=2)), path)
    return path


def load_with_step(file: Path, folder: Path, step: dict[str, Any]) -> None:
    path = folder / "changed.safetensors"
    path.write_bytes(with_steps(file.read_bytes(), [step]))
    ub.load(path)


@pytest.mark.parametrize("name", UNFIT_STEPS)
def test_a_step_with_one_wrong_field_is_refused_for_that_field(name: str, plain_file: Path, tmp_path: Path) -> None:
    step, words = UNFIT_STEPS[name]
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load_with_step(plain_file, tmp_path, step)


@pytest.mark.parametrize("kind", FITTING_STEPS)
def test_the_same_steps_without_the_wrong_field_fit_the_network(kind: str) -> None:
    network = replay(create_model("resnet8_cifar", width=2), (FITTING_STEPS[kind],))
    assert provenance_of(network).transforms == (FITTING_STEPS[kind],)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["training", "collapsed"])
def test_load_checkpoint_gives_one_clear_error_and_changes_nothing(
    tmp_path: Path, good: list[File], step: int, form: str
) -> None:
    model = randomised(network())
    model = ub.collapse(model) if form == "collapsed" else model
    path = tmp_path / "file.safetensors"
    for what, edited in itertools.islice(manifests(good[0][1], random.Random(0)), None, None, 5 * step):
        path.write_bytes(edited)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        error = _error_of_load_checkpoint(model, path)
        if error is not None:
            assert type(error) is CheckpointError, what
            assert str(path) in str(error), what
            assert str(error).isprintable(), what
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), what


def _error_of_load_checkpoint(model: nn.Module, path: Path) -> Exception | None:
    try:
        ub.load_checkpoint(model, path)
    except Exception as error:
        return error
    return None


def test_folders_and_what_is_not_there_are_told(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match="is a folder, not a file"):
            ub.load(tmp_path / name)
        with pytest.raises(CheckpointError, match="there is no file"):
            ub.load(tmp_path / f"b{name}")
