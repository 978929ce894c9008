"""The progress bar of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unbranch.display.console import console

if TYPE_CHECKING:
    from unbranch.train.progress import TrainingProgress


@contextmanager
def training_bar() -> Iterator[tuple[Callable[[TrainingProgress], None], Callable[[str], None]]]:
    """Show a progress bar on stderr if it is a terminal.

    Yields:
        A callback that updates the bar, and one that prints messages above it.
    """
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  top-1 {task.fields[top1]:.1f} %  {task.fields[speed]:,.0f} images/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    err = console(stderr=True)
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=None, epoch="", loss=0.0, top1=0.0, speed=0.0, visible=False)

        def on_progress(progress: TrainingProgress) -> None:
            bar.update(
                task, visible=True, total=progress.steps, completed=progress.step, loss=progress.loss,
                top1=progress.top1, speed=progress.images_per_second, epoch=f"{progress.epoch}/{progress.epochs}",
            )  # fmt: skip

        yield on_progress, lambda line: bar.console.print(line)
