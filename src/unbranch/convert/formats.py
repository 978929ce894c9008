"""Networks in other formats than PyTorch's: what each recognises, and how it is explained and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Format:
    """A format of networks.

    Args:
        recognises: whether a value is a network of this format.
        explain: ``explain(network, example_input)``, returns a conversion.
        verify: ``verify(a, b, example_input)``, returns a comparison.
    """

    recognises: Callable[[Any], bool]
    explain: Callable[..., Any]
    verify: Callable[..., Any]


_FORMATS: list[Format] = []


def register_format(
    recognises: Callable[[Any], bool], explain: Callable[..., Any], verify: Callable[..., Any]
) -> None:  # fmt: skip
    """Let ``explain``, ``collapse`` and ``verify`` take networks of another format."""
    _FORMATS.append(Format(recognises, explain, verify))


def format_of(*networks: Any) -> Format | None:
    """Return the format that all these networks have, None for modules of PyTorch."""
    return next((f for f in _FORMATS if all(f.recognises(network) for network in networks)), None)
