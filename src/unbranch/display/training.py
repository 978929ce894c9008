"""Plans, progress and results of training on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unbranch.display.console import console, cost_table, count, show_files
from unbranch.train.engine import Moment
from unbranch.train.finish import Pruned, Result
from unbranch.train.plan import Plan

SHOWN = 6


@contextmanager
def training_bar() -> Iterator[tuple[Callable[[Moment], None], Callable[[str], None]]]:
    """A bar on stderr, and a way to write lines above it."""
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

        def watch(moment: Moment) -> None:
            bar.update(
                task, visible=True, total=moment.steps, completed=moment.step, loss=moment.loss, top1=moment.top1,
                speed=moment.images_per_second, epoch=f"{moment.epoch}/{moment.epochs}",
            )  # fmt: skip

        yield watch, lambda line: bar.console.print(line)


def show_plan(plan: Plan) -> RenderableType:
    """What a run would be."""
    memory, table = plan.memory, Table(box=None, pad_edge=False, show_header=False)
    network = plan.model if plan.block is None else f"{plan.model} of {plan.block}"
    images = "×".join(map(str, plan.image))
    rows = {
        "network": network,
        "data": plan.data,
        "images": f"{images}, {plan.batch} a step, {plan.processes} at work",
        "steps": f"{plan.steps:,}, {plan.steps_per_epoch:,} in each of {plan.epochs} epochs",
        "memory": f"{_mib(memory.total)}: weights {_mib(memory.weights)}, gradients {_mib(memory.gradients)}, "
        f"optimizer {_mib(memory.optimizer)}, average {_mib(memory.average)}, activations {_mib(memory.activations)}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    groups = Table("tensors", "numbers", "rate", "decay", box=None, pad_edge=False, header_style="dim")
    for group in plan.groups[:SHOWN]:
        groups.add_row(str(group.tensors), count(group.numbers), f"{group.learning_rate:g}", f"{group.weight_decay:g}")
    if len(plan.groups) > SHOWN:
        groups.add_row(f"… and {len(plan.groups) - SHOWN} more", "", "", "")
    return Group(table, Text(), cost_table(plan.before, plan.after), Text(), groups)


def show_result(result: Result) -> RenderableType:
    """Accuracy of both forms, their difference and their costs."""
    proof, table = result.proof, Table("", "trained", "collapsed", box=None, pad_edge=False, header_style="dim")
    table.add_row("top-1", f"{proof.before.top1:.2f} %", f"{proof.after.top1:.2f} %")
    table.add_row("top-5", f"{proof.before.top5:.2f} %", f"{proof.after.top5:.2f} %")
    table.add_row("loss", f"{proof.before.loss:.4f}", f"{proof.after.loss:.4f}")
    told = (
        f"{proof.same_class:,} of {proof.images:,} images get the same class; worst logit {proof.float32:.0e} away in "
        f"float32, {proof.float64:.0e} in float64; best epoch {result.best_top1:.2f} %"
    )
    parts: list[RenderableType] = [table, Text(told), cost_table(result.report.before, result.report.after)]
    if result.pruned is not None:
        parts += [Text(), show_pruned(result.pruned)]
    if result.corrupt:
        parts.append(Text(f"{result.corrupt} images couldn't be read and were skipped", style="yellow"))
    return Group(*parts, show_files(result.files))


def show_pruned(pruned: Pruned) -> RenderableType:
    """Accuracy on the way, the widths that came out, and what they save."""
    pruning, table = pruned.pruning, Table("channels", "before", "after", box=None, pad_edge=False, header_style="dim")
    for path, (before, after) in pruning.widths.items():
        zeros = f", {pruning.zero_but_kept[path]} zero" if path in pruning.zero_but_kept else ""
        table.add_row(path, str(before), f"{after}{zeros}")
    left = 100 * pruning.macs[1] / max(1, pruning.macs[0])
    told = (
        f"top-1 {pruned.base.top1:.2f} % at the beginning, {pruned.trained.top1:.2f} % with compactors; "
        f"{left:.1f} % of the multiply-accumulates of convolutions and classifiers are left "
        f"({count(pruning.macs[0])} → {count(pruning.macs[1])}; as PyTorch counts {count(pruning.before.macs)} → "
        f"{count(pruning.after.macs)}), {count(pruning.before.params)} → {count(pruning.after.params)} parameters, "
        f"{pruned.latency.first_ms:.2f} → {pruned.latency.second_ms:.2f} ms an image ({pruned.latency.ratio:.2f}×)"
    )
    parts: list[RenderableType] = [table, Text(told)]
    masked = pruned.progress.masked - pruned.progress.small
    if masked > 0 and left > 100 * pruned.progress.target:
        parts.append(
            Text(
                f"{masked:,} masked channels aren't zero yet and stayed: train longer or with more prune.strength, or "
                "take them out all the same with prune.masked=true",
                style="yellow",
            )
        )
    return Group(*parts)


def _mib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
