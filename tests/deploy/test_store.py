"""A deployment replaces its own files only, completely or not at all, and reads none outside its directory."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from unbranch.deploy.result import read_result
from unbranch.deploy.store import MANIFEST, WEIGHTS, Store
from unbranch.errors import InputError

SIGNATURE: dict[str, Any] = {"inputs": [], "outputs": []}


def manifest(*paths: Any) -> str:
    return json.dumps({"artifacts": [{"path": path} for path in paths], "signature": SIGNATURE})


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


def commit(directory: Path, *targets: str) -> None:
    store = Store(directory, targets)
    with store.scratch() as scratch:
        staged = scratch / "staged"
        for target in targets:
            (staged / target).mkdir(parents=True)
            (staged / target / "model").write_text(target)
        (staged / WEIGHTS).write_text("weights")
        store.commit(staged, manifest(*(f"{target}/model" for target in targets)))


def test_second_deployment_replaces_the_files_of_the_first(tmp_path: Path) -> None:
    commit(tmp_path, "a", "b")
    (tmp_path / "mine").write_text("x")
    commit(tmp_path, "b", "c")
    assert names(tmp_path) == {"b", "b/model", "c", "c/model", WEIGHTS, MANIFEST, "mine"}


OUTSIDE = [
    "../other/model", "..", ".", "", "/etc/passwd", "a/../../other/model", "./other/model", "other", 3, ["a"],
    "a//model", "a/b/model", ".git/config", "..\\other\\model",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE, ids=str)
def test_edited_manifest_names_nothing_outside(tmp_path: Path, path: Any) -> None:
    directory, other = tmp_path / "out", tmp_path / "other"
    for folder in (other, directory / "other", directory / ".git", directory / "a" / "b"):
        folder.mkdir(parents=True)
        (folder / "model").write_text("precious")
    (directory / MANIFEST).write_text(manifest(path))
    before = names(tmp_path)
    with pytest.raises(InputError):
        commit(directory, "c")
    with pytest.raises(InputError):
        read_result(directory)
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST, "a", "a-not-verified"])
@pytest.mark.parametrize("dangling", [False, True])
def test_files_of_others_are_not_replaced(tmp_path: Path, name: str, dangling: bool) -> None:
    if dangling:
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / name).write_text("[1]")
    with pytest.raises(InputError):
        Store(tmp_path, ["a"])
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("step", range(7))
def test_interrupted_commit_restores_the_first_deployment(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    commit(tmp_path, "a", "b")
    before = {name: (tmp_path / name).read_text() for name in names(tmp_path) if (tmp_path / name).is_file()}
    rename, calls = Path.rename, iter(range(100))

    def interrupted(path: Path, target: Path) -> Path:
        if next(calls) == step:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        commit(tmp_path, "b", "c")
    monkeypatch.undo()
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path) if (tmp_path / name).is_file()} == before


def test_two_deployments_do_not_write_to_one_directory(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with Store(tmp_path, []).scratch() as scratch:
        with pytest.raises(InputError), Store(tmp_path, []).scratch():
            pass
        assert scratch.is_dir()
    with Store(tmp_path, []).scratch():
        pass
    assert not names(tmp_path)


def test_what_a_killed_deployment_left_is_removed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    left = tmp_path / ".unbranch-deploy-killed"
    left.mkdir()
    commit(tmp_path, "a")
    assert not left.exists()


@pytest.mark.parametrize("commits", [False, True])
def test_directories_are_created_only_for_files(tmp_path: Path, commits: bool) -> None:
    directory = tmp_path / "a" / "b c" / "ü"
    Store(directory, ["a"])
    assert not names(tmp_path)
    if commits:
        commit(directory, "a")
        assert (directory / "a" / "model").is_file()
    else:
        with pytest.raises(ZeroDivisionError), Store(directory, ["a"]).scratch():
            raise ZeroDivisionError
        assert not names(tmp_path)


def test_directory_that_is_removed_meanwhile_is_one_error(tmp_path: Path) -> None:
    directory = tmp_path / "out"
    store = Store(directory, ["a"])

    def write_into_what_is_gone() -> None:
        with store.scratch() as scratch:
            shutil.rmtree(directory)
            (scratch / "file").write_text("x")

    with pytest.raises(InputError):
        write_into_what_is_gone()


def test_scratch_is_private_and_ends_with_the_context(tmp_path: Path) -> None:
    with Store(tmp_path, []).scratch() as scratch:
        assert stat.S_IMODE(scratch.stat().st_mode) & 0o077 == 0 or os.name == "nt"
        (scratch / "x").mkdir()
    assert not names(tmp_path)
