"""The run: steps, epochs, checkpoints, and the collapsed network at the end.

Nothing random in a step depends on earlier steps: augmentation is a function of seed, epoch and image; dropout and
mixing of seed, step and process. A resumed run therefore ends as it would have without the interruption, and several
processes see the same images as one.
"""

from __future__ import annotations

import math
import threading
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from unbranch.deprecation import renamed_arguments
from unbranch.errors import InputError, TrainingInterrupted
from unbranch.train.context import TrainingContext, prepare
from unbranch.train.data import Data
from unbranch.train.evaluate import Scores, evaluate
from unbranch.train.finish import finish, with_weights
from unbranch.train.interrupts import interrupt_requests
from unbranch.train.progress import Log, OnProgress, RunningMeans, TrainingProgress, ignore
from unbranch.train.recipe import Recipe, load_recipe, to_yaml
from unbranch.train.result import TrainingResult
from unbranch.train.run_directory import (
    BEST,
    CheckpointInfo,
    RunDirectory,
    TensorBoardLogger,
    read_checkpoint_info,
)
from unbranch.train.step import train_part
from unbranch.weights import save


@renamed_arguments(out="output", watch="on_progress", say="log")
def train(
    recipe: Recipe, data: Data, output: str | Path, *, resume: bool = False,
    on_progress: OnProgress = ignore, log: Log = ignore,
) -> TrainingResult | None:  # fmt: skip
    """Train a network, collapse it, and compare both forms on the validation set.

    Call it on every process of a launch.

    Args:
        recipe: the settings of the run.
        data: images for training and validation.
        output: run directory, which gets the recipe, metrics, checkpoints, weights and the result.
        resume: continue from the last checkpoint in ``output``, or start if there is none.
        on_progress: called after each report, on the main process.
        log: called with messages for the user, on the main process.

    Returns:
        The result on the main process, None on the others.

    Raises:
        InputError: if recipe and data don't fit, or ``output`` holds another run.
        TrainingInterrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
        UnbranchError: if the collapsed network doesn't compute the same function as the trained one.

    Example:
        >>> import unbranch as ub
        >>> from unbranch.train import load_recipe, open_data
        >>> recipe = load_recipe("digits", ["schedule.epochs=1", "schedule.warmup_epochs=0"])
        >>> result = ub.train.train(recipe, open_data("digits"), "runs/digits")  # doctest: +SKIP
    """
    context = prepare(recipe, data)
    run = _completed(context, output, resume, on_progress, log)
    return finish(context, run.directory, run.corrupt, run.best)


def fit(
    network: nn.Module, recipe: Recipe, data: Data, output: str | Path, *, resume: bool = False,
    on_progress: OnProgress = ignore, log: Log = ignore,
) -> nn.Module:  # fmt: skip
    """Train a given network with the settings of a recipe, and return a copy of it with the weights of the last step.

    Args:
        network: takes images and returns logits; it isn't changed. It is used in place of the network that ``model``
            in the recipe describes.
        recipe, data, output, resume, on_progress, log: as in ``train``.

    Raises:
        InputError, TrainingInterrupted: as in ``train``.
    """
    context = prepare(recipe, data, network)
    _completed(context, output, resume, on_progress, log)
    return with_weights(context)


def _completed(
    context: TrainingContext, output: str | Path, resume: bool, on_progress: OnProgress, log: Log
) -> _Run:  # fmt: skip
    """Return a run after its last step."""
    main = context.accelerator.is_main_process
    run = _Run(context, RunDirectory(output), on_progress if main else ignore, log if main else ignore)
    run.begin(resume)
    with interrupt_requests() as interrupted:
        run.interrupted = interrupted
        run.run_to_end()
    return run


class _Run:
    """The course of a run; ``step`` updates are done."""

    def __init__(self, context: TrainingContext, directory: RunDirectory, on_progress: OnProgress, log: Log) -> None:
        self.context, self.directory, self.on_progress, self.log = context, directory, on_progress, log
        self.step, self.best, self.corrupt = 0, -1.0, 0
        self.interrupted = threading.Event()
        self.curves: TensorBoardLogger | None = None

    @property
    def main(self) -> bool:
        return bool(self.context.accelerator.is_main_process)

    # --- start

    def begin(self, resume: bool) -> None:
        """Create the run directory, or load its last checkpoint."""
        with self.context.accelerator.main_process_first():
            if self.main:
                self._open_directory(resume)
        if resume:
            self._restore()
        if self.main:
            self.curves = TensorBoardLogger(self.directory.path)

    def _open_directory(self, resume: bool) -> None:
        recipe = self.context.recipe
        if not resume:
            self.directory.create(to_yaml(recipe))
            return
        path = self.directory.recipe_path()
        if replace(load_recipe(path), about=recipe.about, source=recipe.source) != recipe:
            raise InputError(f"{path} is another recipe than this one: resume with the same settings")
        self.directory.remove_incomplete()

    def _restore(self) -> None:
        found = self.directory.checkpoints()
        if not found:
            self.log("no checkpoint yet: starting from the beginning")
            return
        info = read_checkpoint_info(found[-1])
        self._check_environment(info)
        try:
            self.context.accelerator.load_state(str(found[-1]))
        except Exception as error:  # readers raise anything for a damaged file
            raise InputError(
                f"{found[-1]} can't be read ({type(error).__name__}: {error}): remove it to resume from the "
                "checkpoint before it"
            ) from error
        self.step, self.best, self.corrupt = info.step, info.best, info.corrupt
        if self.main:
            self.directory.truncate_metrics(self.step)
        self.log(f"resumed after step {self.step:,} of {self.context.steps:,}")

    def _check_environment(self, info: CheckpointInfo) -> None:
        now, then = self.context.environment(), info.environment
        if now["data"] != then.get("data"):
            raise InputError(f"{self.context.data.name} isn't the data that the run was started with")
        changed = [f"{name} {then.get(name)} → {value}" for name, value in now.items() if then.get(name) != value]
        if now["device"] != "cpu":
            changed.append("sums on a GPU have no fixed order")
        if changed:
            self.log(f"the resumed run won't be bit-identical: {'; '.join(changed)}")

    # --- steps

    def run_to_end(self) -> None:
        """Run the remaining steps, epoch by epoch."""
        context, per_epoch = self.context, self.context.steps_per_epoch
        while self.step < context.steps:
            epoch = self.step // per_epoch
            self._epoch(epoch)
            scores = self._evaluate(epoch)
            improved = scores.top1 > self.best
            self.best = max(self.best, scores.top1)
            if improved:
                self._save_best()
            self._save_checkpoint()
            if self.step < context.steps:
                self._stop_if_interrupted()
        if self.curves is not None:
            self.curves.close()

    def _epoch(self, epoch: int) -> None:
        context, means = self.context, RunningMeans()
        training = context.recipe.training
        context.network.train()
        context.order.at(epoch, self.step % context.steps_per_epoch)
        for part, batch in enumerate(context.batches):
            if not train_part(context, batch, part, self.step, means):
                continue
            self.step += 1
            last = self.step % context.steps_per_epoch == 0
            reports = self.step % training.log_every == 0
            if reports or last:
                self._report(epoch, means)
            if last:  # evaluation comes before the checkpoint
                return
            if reports or context.accelerator.num_processes == 1:
                self._stop_if_interrupted(saved=False)
            if training.save_every and self.step % training.save_every == 0:
                self._save_checkpoint()

    def _report(self, epoch: int, means: RunningMeans) -> None:
        """Pass the means since the last report to the run directory, TensorBoard and the callback."""
        context, found = self.context, means.take(self.context.accelerator)
        if found is None:
            return
        self.corrupt += found.corrupt
        progress = TrainingProgress(
            self.step, context.steps, epoch + 1, context.recipe.schedule.epochs, found.loss, found.top1,
            found.images_per_second, float(context.optimizer.param_groups[0]["lr"]),
        )  # fmt: skip
        if not math.isfinite(progress.loss):
            raise InputError(f"the loss is {progress.loss} after step {self.step}: try a smaller optimizer.lr")
        if self.main:
            pruning = {} if context.resrep is None else {"pruning": asdict(context.resrep.progress())}
            values = {key: value for key, value in asdict(progress).items() if key not in ("steps", "epochs")}
            self.directory.log_metrics(**values, **pruning)
            if self.curves is not None:
                self.curves.log(self.step, train_loss=progress.loss, train_lr=progress.learning_rate)
        self.on_progress(progress)

    def _stop_if_interrupted(self, saved: bool = True) -> None:
        """Raise TrainingInterrupted on all processes if one was interrupted, once a checkpoint is written."""
        accelerator = self.context.accelerator
        if self.interrupted.is_set():
            accelerator.set_trigger()
        if not accelerator.check_trigger():
            return
        if not saved:
            self._save_checkpoint()
        raise TrainingInterrupted(f"stopped after step {self.step:,} of {self.context.steps:,}; continue with --resume")

    # --- between epochs

    def _evaluate(self, epoch: int) -> Scores:
        context = self.context
        network = context.network if context.ema is None else context.ema.module
        scores = evaluate(network, context.validation, context.accelerator)
        if self.main:
            self.directory.log_metrics(step=self.step, epoch=epoch + 1, validation=asdict(scores))
            if self.curves is not None:
                self.curves.log(self.step, val_top1=scores.top1, val_loss=scores.loss)
            pruning = "" if context.resrep is None else f"; {context.resrep.progress()}"
            corrupt = f", {self.corrupt} images couldn't be read" if self.corrupt else ""
            self.log(
                f"epoch {epoch + 1} of {context.recipe.schedule.epochs}: top-1 {scores.top1:.2f} %, "
                f"loss {scores.loss:.4f}{corrupt}{pruning}"
            )
        return scores

    def _save_best(self) -> None:
        network = with_weights(self.context)
        if self.main:
            save(network, self.directory.path / BEST)

    def _save_checkpoint(self) -> None:
        """Write a checkpoint under a temporary name first, so that a killed run leaves no incomplete one."""
        context = self.context
        path = [str(self.directory.new_checkpoint())] if self.main else [""]
        if context.accelerator.num_processes > 1:
            torch.distributed.broadcast_object_list(path)
        context.accelerator.save_state(path[0])
        context.accelerator.wait_for_everyone()
        if self.main:
            info = CheckpointInfo(self.step, self.best, self.corrupt, context.environment())
            self.directory.commit_checkpoint(Path(path[0]), info, context.recipe.training.keep)
        context.accelerator.wait_for_everyone()
