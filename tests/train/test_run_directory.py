"""A run directory holds whole checkpoints only, and metrics up to where the run is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unbranch.errors import InputError
from unbranch.train.run_directory import INFO, METRICS, CheckpointInfo, RunDirectory, read_checkpoint_info


def begun(path: Path) -> RunDirectory:
    folder = RunDirectory(path / "run")
    folder.create("model: {name: resnet18}\n")
    return folder


def with_checkpoint(folder: RunDirectory, step: int, keep: int = 1) -> Path:
    made = folder.new_checkpoint()
    (made / "model.safetensors").write_bytes(b"weights")
    folder.commit_checkpoint(made, CheckpointInfo(step, 50.0, 0, {"data": "x"}), keep)
    return folder.checkpoints()[-1]


def test_a_second_run_doesnt_take_the_folder_of_the_first(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(InputError, match="holds a run already: continue it with --resume"):
        begun(tmp_path)


def test_a_file_or_a_forbidden_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file, not a directory"):
        begun(tmp_path)
    with pytest.raises(InputError, match="can't create the directory"):
        RunDirectory(tmp_path / "run" / "inside").create("")


def test_there_is_nothing_to_resume_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run to resume"):
        RunDirectory(tmp_path).recipe_path()


def test_only_finished_checkpoints_count_and_the_last_ones_stay(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    for step in (9, 10, 100):
        with_checkpoint(folder, step, keep=2)
    half = folder.new_checkpoint()
    assert [path.name for path in folder.checkpoints()] == ["00000010", "00000100"]
    assert read_checkpoint_info(folder.checkpoints()[-1]).step == 100
    folder.remove_incomplete()
    assert not half.exists()
    assert len(folder.checkpoints()) == 2


def test_a_checkpoint_of_the_same_step_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with_checkpoint(folder, 5)
    (folder.checkpoints()[0] / "old").touch()
    path = with_checkpoint(folder, 5)
    assert not (path / "old").exists()


def test_a_damaged_position_is_told(tmp_path: Path) -> None:
    path = with_checkpoint(begun(tmp_path), 5)
    (path / INFO).write_text('{"step": 5')
    with pytest.raises(InputError, match="is damaged"):
        read_checkpoint_info(path)


def test_the_info_of_a_checkpoint_of_version_0_1_is_read(tmp_path: Path) -> None:
    path = with_checkpoint(begun(tmp_path), 5)
    info = read_checkpoint_info(path)
    old = {"step": 5, "best": 50.0, "corrupt": 0, "circumstances": {"data": "x"}}
    (path / INFO).write_text(json.dumps(old))
    assert read_checkpoint_info(path) == info


def test_metrics_beyond_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    for step in (10, 20, 30):
        folder.log_metrics(step=step, loss=1.0)
    with (folder.path / METRICS).open("a") as file:
        file.write('{"step": 2')  # of a run that was killed
    folder.truncate_metrics(20)
    steps = [json.loads(line)["step"] for line in (folder.path / METRICS).read_text().splitlines()]
    assert steps == [10, 20]
