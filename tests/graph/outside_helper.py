"""A module of Python that keeps a table, for ``test_outside``."""

TABLE: dict = {}


def kept(key, make):
    if key not in TABLE:
        TABLE[key] = make()
    return TABLE[key]
