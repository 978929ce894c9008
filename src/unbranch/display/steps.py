"""The progress bar of work in steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from unbranch.display.console import console


@contextmanager
def steps_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on stderr if it is a terminal.

    Yields:
        A callback that takes what is being done, and the steps done and in total.
    """
    err = console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)

        def on_progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield on_progress
