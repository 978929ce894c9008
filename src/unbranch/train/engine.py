"""The run: steps, epochs, checkpoints, and the collapsed network at the end.

Nothing random in a step depends on the steps before: augmentation is a function of seed, epoch and image, dropout and
mixing of seed, step and process. So a run that is resumed goes on as if it had never stopped, and several processes
see what one would.
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unbranch.errors import InputError, Stopped
from unbranch.extras import library
from unbranch.train.data import Data
from unbranch.train.evaluate import Scores, evaluate
from unbranch.train.finish import Result, finish, with_weights
from unbranch.train.folder import BEST, Board, Folder, Position, position_in
from unbranch.train.job import Job, prepare
from unbranch.train.optimise import updates_ema
from unbranch.train.recipe import Recipe, to_yaml
from unbranch.weights import save


@dataclass(frozen=True)
class Moment:
    """Where a run stands: after ``step`` of ``steps`` updates, with means since the last report."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    top1: float
    images_per_second: float
    learning_rate: float


Watch: TypeAlias = Callable[[Moment], None]
Say: TypeAlias = Callable[[str], None]


def _quiet(_: Any) -> None:
    return None


def train(
    recipe: Recipe, data: Data, out: str | Path, *, resume: bool = False, watch: Watch = _quiet, say: Say = _quiet
) -> Result | None:
    """Train a network, collapse it, and prove both equal on the validation set; everything is written to ``out``.

    Call it on every process of a launch; ``watch`` and ``say`` are called, and the result is given, on the main one.

    Args:
        resume: go on from the last checkpoint in ``out``, or begin if there is none.
        watch: called after each report.
        say: called with sentences for the user.

    Raises:
        InputError: if recipe and data don't fit, or ``out`` holds another run.
        Stopped: after Ctrl-C, when the checkpoint is written.
        UnbranchError: if the collapsed network is another function than the trained one.
    """
    job = prepare(recipe, data)
    main = job.accelerator.is_main_process
    run = _Run(job, Folder(Path(out)), watch if main else _quiet, say if main else _quiet)
    run.begin(resume)
    with _interruptible() as stopping:
        run.stopping = stopping
        run.go()
    return finish(job, run.folder, run.corrupt, run.best)


class _Run:
    """The course of a run; ``step`` updates are done."""

    def __init__(self, job: Job, folder: Folder, watch: Watch, say: Say) -> None:
        self.job, self.folder, self.watch, self.say = job, folder, watch, say
        self.step, self.best, self.corrupt = 0, -1.0, 0
        self.stopping = threading.Event()
        self.board: Board | None = None

    @property
    def main(self) -> bool:
        return bool(self.job.accelerator.is_main_process)

    # --- beginning

    def begin(self, resume: bool) -> None:
        """Make the folder, or go back to its last checkpoint."""
        accelerator = self.job.accelerator
        with accelerator.main_process_first():
            if self.main:
                self._claim(resume)
        if resume:
            self._restore()
        if self.main:
            self.board = Board(self.folder.path)

    def _claim(self, resume: bool) -> None:
        text = to_yaml(self.job.recipe)
        if not resume:
            self.folder.begin(text)
            return
        if self.folder.recipe().read_text() != text:
            raise InputError(f"{self.folder.recipe()} is another recipe than this one: resume with the same settings")
        self.folder.sweep()

    def _restore(self) -> None:
        found = self.folder.checkpoints()
        if not found:
            self.say("no checkpoint yet: beginning from the start")
            return
        position = position_in(found[-1])
        self._check_circumstances(position)
        try:
            self.job.accelerator.load_state(str(found[-1]))
        except Exception as error:  # whatever a damaged file makes a reader raise
            raise InputError(f"{found[-1]} can't be read ({type(error).__name__}: {error}): remove it, and the "
                             "checkpoint before it is taken") from error  # fmt: skip
        self.step, self.best, self.corrupt = position.step, position.best, position.corrupt
        if self.main:
            self.folder.forget_after(self.step)
        self.say(f"resumed after step {self.step:,} of {self.job.steps:,}")

    def _check_circumstances(self, position: Position) -> None:
        now, then = self.job.circumstances(), position.circumstances
        if now["data"] != then.get("data"):
            raise InputError(f"{self.job.data.name} isn't the data that the run was begun with")
        changed = [f"{name} {then.get(name)} → {value}" for name, value in now.items() if then.get(name) != value]
        if now["device"] != "cpu":
            changed.append("sums on a GPU have no fixed order")
        if changed:
            self.say(f"not bit for bit as without the break: {'; '.join(changed)}")

    # --- steps

    def go(self) -> None:
        """All steps that are left, epoch by epoch."""
        job, per_epoch = self.job, self.job.steps_per_epoch
        while self.step < job.steps:
            epoch = self.step // per_epoch
            self._epoch(epoch)
            scores = self._judge(epoch)
            best = scores.top1 > self.best
            self.best = max(self.best, scores.top1)
            if best:
                self._save_best()
            self._checkpoint()
            if self.step < job.steps:
                self._stop_if_asked()
        if self.board is not None:
            self.board.close()

    def _epoch(self, epoch: int) -> None:
        job, report = self.job, _Report(self)
        job.network.train()
        job.order.at(epoch, self.step % job.steps_per_epoch)
        save_every = job.recipe.training.save_every
        for part, batch in enumerate(job.batches):
            updated = self._part(batch, part, report)
            if not updated:
                continue
            self.step += 1
            last = self.step % job.steps_per_epoch == 0
            reports = self.step % job.recipe.training.log_every == 0
            if reports or last:
                report.tell(epoch)
            if last:  # what follows an epoch comes first
                return
            if reports or job.accelerator.num_processes == 1:
                self._stop_if_asked(saved=False)
            if save_every and self.step % save_every == 0:
                self._checkpoint()

    def _part(self, batch: dict[str, Tensor], part: int, report: _Report) -> bool:
        """A part of a batch, forward and backward; whether it was the last part, and the weights were updated."""
        job = self.job
        accelerator, recipe = job.accelerator, job.recipe
        parts = recipe.training.accumulate
        _seed(recipe.seed, self.step * parts + part % parts, accelerator.process_index)
        images, labels = batch["image"].to(memory_format=job.layout), batch["label"]
        with accelerator.accumulate(job.network), job.safely():
            targets = labels
            if job.mix is not None:
                images, targets = job.mix(images, labels)
            job.schedule.set(self.step)
            outputs = job.network(images)
            loss = job.loss(outputs, targets)
            total = loss if job.penalty is None else loss + job.penalty()
            accelerator.backward(total)
            if accelerator.sync_gradients and recipe.optimizer.clip_grad is not None:
                accelerator.clip_grad_norm_(job.network.parameters(), recipe.optimizer.clip_grad)
            if accelerator.sync_gradients and job.resrep is not None:
                if recipe.optimizer.clip_grad is None:  # which has unscaled them
                    accelerator.unscale_gradients(job.optimizer)
                job.resrep.step()
            job.optimizer.step()
            job.optimizer.zero_grad()
        report.add(loss.detach(), outputs, labels, batch["corrupt"])
        updated = bool(accelerator.sync_gradients)
        if updated and updates_ema(recipe, self.step + 1):
            job.ema.update(accelerator.unwrap_model(job.network), step=self.step + 1)
        return updated

    def _stop_if_asked(self, saved: bool = True) -> None:
        """Raises Stopped, on all processes, if one was asked to; a checkpoint is written by then."""
        accelerator = self.job.accelerator
        if self.stopping.is_set():
            accelerator.set_trigger()
        if not accelerator.check_trigger():
            return
        if not saved:
            self._checkpoint()
        raise Stopped(f"stopped after step {self.step:,} of {self.job.steps:,}; continue with --resume")

    # --- between epochs

    def _judge(self, epoch: int) -> Scores:
        job = self.job
        network = job.network if job.ema is None else job.ema.module
        scores = evaluate(network, job.validation, job.accelerator)
        if self.main:
            self.folder.log(step=self.step, epoch=epoch + 1, validation=asdict(scores))
            if self.board is not None:
                self.board.log(self.step, val_top1=scores.top1, val_loss=scores.loss)
            pruned = "" if job.resrep is None else f"; {job.resrep.progress()}"
            corrupt = f", {self.corrupt} images couldn't be read" if self.corrupt else ""
            self.say(
                f"epoch {epoch + 1} of {job.recipe.schedule.epochs}: top-1 {scores.top1:.2f} %, "
                f"loss {scores.loss:.4f}{corrupt}{pruned}"
            )
        return scores

    def _save_best(self) -> None:
        network = with_weights(self.job)
        if self.main:
            save(network, self.folder.path / BEST)

    def _checkpoint(self) -> None:
        """Written under another name first, so that a killed run leaves none that is half there."""
        job = self.job
        path = [str(self.folder.new_checkpoint())] if self.main else [""]
        if job.accelerator.num_processes > 1:
            torch.distributed.broadcast_object_list(path)
        job.accelerator.save_state(path[0])
        job.accelerator.wait_for_everyone()
        if self.main:
            position = Position(self.step, self.best, self.corrupt, job.circumstances())
            self.folder.finish_checkpoint(Path(path[0]), position, job.recipe.training.keep)
        job.accelerator.wait_for_everyone()


class _Report:
    """Sums since the last report: loss, right images, images, unreadable ones."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.begin = time.perf_counter()
        self.sums: Tensor | None = None

    def add(self, loss: Tensor, outputs: Any, labels: Tensor, corrupt: Tensor) -> None:
        """A part of a batch; nothing is read back from the device here."""
        logits = outputs["main"] if isinstance(outputs, dict) else outputs
        right = (logits.detach().argmax(1) == labels).sum()
        count = torch.tensor(len(labels), device=loss.device)
        part = torch.stack([loss.double() * len(labels), right.double(), count.double(), corrupt.sum().double()])
        self.sums = part if self.sums is None else self.sums + part

    def tell(self, epoch: int) -> None:
        """Hand the means to the folder, the board and whoever watches, and begin anew."""
        run, job = self.run, self.run.job
        if self.sums is None:
            return
        loss, right, count, corrupt = job.accelerator.reduce(self.sums, "sum").tolist()
        seconds = time.perf_counter() - self.begin
        run.corrupt += int(corrupt)
        moment = Moment(
            step=run.step,
            steps=job.steps,
            epoch=epoch + 1,
            epochs=job.recipe.schedule.epochs,
            loss=loss / count,
            top1=100 * right / count,
            images_per_second=count / max(seconds, 1e-9),
            learning_rate=float(job.optimizer.param_groups[0]["lr"]),
        )
        if not math.isfinite(moment.loss):
            raise InputError(f"the loss is {moment.loss} after step {run.step}: try a smaller optimizer.lr")
        if run.main:
            pruning = {} if job.resrep is None else {"pruning": asdict(job.resrep.progress())}
            values = {key: value for key, value in asdict(moment).items() if key not in ("steps", "epochs")}
            run.folder.log(**values, **pruning)
            if run.board is not None:
                run.board.log(run.step, train_loss=moment.loss, train_lr=moment.learning_rate)
        run.watch(moment)
        self.begin, self.sums = time.perf_counter(), None


def _seed(seed: int, step: int, process: int) -> None:
    """Make what a step draws a function of the step."""
    numpy = library("numpy", "train")
    (mixed,) = numpy.random.SeedSequence((seed, step, process)).generate_state(1, numpy.uint64).tolist()
    torch.manual_seed(mixed >> 1)
    numpy.random.seed(mixed & 0xFFFFFFFF)
    random.seed(mixed)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second one ends the process as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: Any) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
