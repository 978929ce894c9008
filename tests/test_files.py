"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from unbranch.errors import InputError
from unbranch.files import all_or_nothing


def test_all_files_appear_when_the_block_ends_well(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.bin"
    with all_or_nothing(a, b) as (first, second):
        first.write_text("one")
        second.write_text("two")
        assert first.suffix == ".txt"
        assert not a.exists()
    assert (a.read_text(), b.read_text()) == ("one", "two")
    assert sorted(tmp_path.iterdir()) == [a, b]


def test_no_file_appears_and_an_old_one_stays_when_the_block_fails(tmp_path: Path) -> None:
    old = tmp_path / "old.txt"
    old.write_text("old")

    def fail() -> None:
        with all_or_nothing(old, tmp_path / "new.txt") as (first, _):
            first.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "old"


def test_a_file_that_was_not_written_fails_readably(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't write"), all_or_nothing(tmp_path / "a"):
        pass


@pytest.mark.parametrize("target", ["missing/a.txt", "."])
def test_a_place_that_can_not_be_written_is_refused_first(tmp_path: Path, target: str) -> None:
    with pytest.raises(InputError, match="can't write"), all_or_nothing(tmp_path / target):
        pytest.fail("the block ran")


def test_two_writers_of_one_path_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with all_or_nothing(target) as (first,), all_or_nothing(target) as (second,):
        assert first != second
        first.write_text("one")
        second.write_text("two")
    assert target.read_text() == "one"  # the outer one ends last
    assert list(tmp_path.iterdir()) == [target]


def test_many_threads_leave_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"

    def write(letter: str) -> None:
        for _ in range(20):
            with all_or_nothing(target) as (temporary,):
                temporary.write_text(letter * 10_000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    assert target.read_text() in {letter * 10_000 for letter in "abcd"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_rename_that_fails_is_told_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    old = tmp_path / "a.txt"
    old.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=os.strerror(reason)), all_or_nothing(old) as (temporary,):
        temporary.write_text("new")
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_full_disk_while_writing_is_told(tmp_path: Path) -> None:
    def fail() -> None:
        with all_or_nothing(tmp_path / "a.txt") as (temporary,):
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match="No space left"):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_not_be_written_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", fail)
    with pytest.raises(InputError, match="Permission denied"), all_or_nothing(tmp_path / "a.txt"):
        pytest.fail("the block ran")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual.txt").touch()
    with all_or_nothing(tmp_path / "a.txt") as (temporary,):
        temporary.write_text("")
        temporary.chmod(0o600)
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "usual.txt").stat().st_mode


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("a" * 240 + ".txt")
    with all_or_nothing(target) as (temporary,):
        temporary.write_text("a")
    assert target.exists()


def test_an_error_of_another_file_is_not_blamed_on_the_one_that_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), all_or_nothing(tmp_path / "a.txt"):
        (tmp_path / "missing.txt").read_text()
    assert list(tmp_path.iterdir()) == []


def test_one_file_for_two_outputs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.bin").symlink_to(tmp_path / "a.bin")
    for other in ("a.bin", "./a.bin", "link.bin"):
        with (
            pytest.raises(InputError, match="outputs must be different files"),
            all_or_nothing(tmp_path / "a.bin", f"{tmp_path}/{other}"),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["link.bin"]
