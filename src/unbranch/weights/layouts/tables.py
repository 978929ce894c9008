"""Tables of names: prefixes of parameters in published code and in ours, read in both directions.

A row is (published prefix, our prefix). A ``*`` in both matches one part of a path, mostly a number. The table of a
module with children is made of theirs, ``under`` a prefix; so is that of a whole network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias, TypeVar

from unbranch.errors import InputError

Table: TypeAlias = tuple[tuple[str, str], ...]
T = TypeVar("T")


def under(official: str, ours: str, table: Table) -> Table:
    """Return the table of a child module under a prefix on each side; an empty prefix adds nothing."""
    return tuple((_joined(official, theirs), _joined(ours, mine)) for theirs, mine in table)


def same(*prefixes: str) -> Table:
    """Return rows of what has the same name in both."""
    return tuple((prefix, prefix) for prefix in prefixes)


def to_ours(table: Table, values: Mapping[str, T]) -> dict[str, T]:
    """Return values by our keys, given by published keys; the inverse of ``to_official``.

    Raises:
        InputError: if a key isn't in the table.

    Example:
        >>> to_ours((("stage1.*.rbr_dense.", "stages.0.*.conv_kxk."),), {"stage1.12.rbr_dense.bn.bias": 1})
        {'stages.0.12.conv_kxk.bn.bias': 1}
    """
    return _renamed(table, values, "published")


def to_official(table: Table, values: Mapping[str, T]) -> dict[str, T]:
    """Return values by published keys, given by ours; the inverse of ``to_ours``.

    Raises:
        InputError: if a key isn't in the table.
    """
    return _renamed(tuple((ours, theirs) for theirs, ours in table), values, "our")


def renamed(table: Table, key: str) -> str | None:
    """Return our key for a published one, None if the table has no row for it."""
    for pattern, parts in _compiled(table):
        if found := pattern.match(key):
            numbers = zip(parts[1:], found.groups(), strict=False)
            return parts[0] + "".join(number + part for part, number in numbers) + key[found.end() :]
    return None


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


@lru_cache(maxsize=64)
def _compiled(table: Table) -> tuple[tuple[re.Pattern[str], list[str]], ...]:
    """Return each row as a pattern and the parts of its replacement between what the pattern's groups match."""
    return tuple((re.compile(re.escape(old).replace(r"\*", r"([^.]+)")), new.split("*")) for old, new in table)


def _renamed(rows: Table, values: Mapping[str, T], whose: str) -> dict[str, T]:
    found: dict[str, T] = {}
    for key, value in values.items():
        name = renamed(rows, key)
        if name is None:
            raise InputError(f"{key!r} is none of {whose} keys, which begin with {', '.join(old for old, _ in rows)}")
        found[name] = value
    return found
