"""Consoles of rich, as the command line uses them."""

from __future__ import annotations

from rich.console import Console

WIDTH = 140
"""Columns where the output is no terminal, so that tables aren't folded to 80."""


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr, without automatic highlighting."""
    terminal = Console(stderr=stderr, highlight=False)
    return terminal if terminal.is_terminal else Console(stderr=stderr, highlight=False, width=WIDTH)
