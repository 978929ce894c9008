"""Files appear whole or not at all."""

from __future__ import annotations

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
