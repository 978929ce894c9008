"""The YAML dialect of recipes: plain values only, with the numbers and words of YAML 1.2, on PyYAML.

``1e-4`` is a number and ``no`` is text; in YAML 1.1, and so in PyYAML, it is the other way round. Duplicate keys, tags
that would make objects, and aliases are errors: with an alias a small file can make a huge value, or an endless one.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from unbranch.errors import InputError
from unbranch.extras import library

FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.inf$|\.nan$")
BOOL = re.compile("(true|True|TRUE|false|False|FALSE)$")
TAG = "tag:yaml.org,2002:"
REPLACED = (f"{TAG}float", f"{TAG}bool", f"{TAG}timestamp")


def parse(text: str, where: str) -> Any:
    """Return the value of a YAML document; ``where`` names it in errors.

    Raises:
        InputError: if it isn't valid YAML, or holds more than plain values.
    """
    yaml = _yaml()
    loader, _ = _dialect()
    try:
        return yaml.load(text, Loader=loader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{where} isn't YAML of plain values{line}: {problem}") from error
    except (ValueError, RecursionError, OverflowError) as error:  # numbers and depths that Python refuses
        raise InputError(f"{where} isn't YAML of plain values: {error}") from error


def write(values: Any) -> str:
    """Return plain values as YAML, which ``parse`` reads back as the same values."""
    _, dumper = _dialect()
    return str(_yaml().dump(values, Dumper=dumper, sort_keys=False, default_flow_style=None, width=110))


def _yaml() -> Any:
    return library("yaml", "train")


@cache
def _dialect() -> tuple[Any, Any]:
    """Return the loader and the dumper of the dialect."""
    yaml = _yaml()
    safe_loader: Any = yaml.SafeLoader
    safe_dumper: Any = yaml.SafeDumper

    class Loader(safe_loader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                event = self.peek_event()
                problem = f"*{event.anchor} refers to another value, which has to be written again"
                raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
            return super().construct_mapping(node, deep)

    class Dumper(safe_dumper):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
            return True

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rows if tag not in REPLACED]
        for first, rows in safe_loader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(f"{TAG}bool", BOOL, list("tTfF"))
    for dialect in (Loader, Dumper):  # the dumper quotes text that either version reads as another type
        dialect.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+.0123456789"))
    return Loader, Dumper
