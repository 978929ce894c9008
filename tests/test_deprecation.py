"""Old names work, and say what the new ones are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import unbranch.errors
from unbranch.deprecation import RenamedAttribute, renamed_arguments, renamed_names


def test_old_name_of_a_module_warns_where_it_is_used() -> None:
    find = renamed_names("unbranch.errors", {"Old": "InputError", "Elsewhere": "unbranch.extras.library"})
    with pytest.warns(DeprecationWarning, match="`unbranch.errors.Old` is deprecated") as caught:
        assert find("Old") is unbranch.errors.InputError
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="use `unbranch.extras.library`"):
        assert callable(find("Elsewhere"))
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        find("Other")


def test_old_argument_becomes_the_new_one_and_never_both() -> None:
    @renamed_arguments(colour="color")
    def paint(*, color: str) -> str:
        return color

    with pytest.warns(DeprecationWarning, match="use `color`") as caught:
        assert paint(colour="red") == "red"
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="the same argument"):
        paint(colour="red", color="blue")


def test_old_attribute_reads_the_new_one() -> None:
    @dataclass(frozen=True)
    class Result:
        skipped: int
        left = RenamedAttribute("skipped")
        none = RenamedAttribute("skipped", lambda count: count == 0)

    with pytest.warns(DeprecationWarning, match=r"`Result\.left` is deprecated, use `skipped`") as caught:
        assert Result(3).left == 3
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=r"`Result\.none` is deprecated"):
        assert Result(0).none is True
