"""The end of a run: the trained network, its collapsed form, and the proof that they are one function."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from unbranch.convert import Report, collapse
from unbranch.convert.report import report
from unbranch.prune import PruningProgress, PruningReport, finalize
from unbranch.prune.finalization import collapse_for, kept_channels, with_zero_rows, without_channels
from unbranch.prune.select import Limits
from unbranch.timing import Latency, compare_latency
from unbranch.train.evaluate import Proof, Scores, prove, score
from unbranch.train.folder import BEST, DEPLOY, LAST, RECIPE, RESULT, Folder
from unbranch.train.job import Job, validation_loader
from unbranch.weights import save


@dataclass(frozen=True)
class Pruned:
    """What pruning did.

    Args:
        base: scores of the network that the run began with; they mean nothing where it began with random weights.
        trained: scores with the compactors as they were trained; the proof's ``before`` is with small rows zero.
        latency: of the collapsed network with all channels, and pruned.
    """

    base: Scores
    trained: Scores
    pruning: PruningReport
    progress: PruningProgress
    latency: Latency

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "pruning": self.pruning.to_dict()}


@dataclass(frozen=True)
class Result:
    """What a run gives: accuracy before and after collapsing, costs of both forms, files."""

    recipe: str
    data: str
    best_top1: float
    proof: Proof
    report: Report
    corrupt: int
    files: tuple[Path, ...]
    pruned: Pruned | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        before, after = self.report.before, self.report.after
        return {
            "model": self.recipe,
            "data": self.data,
            "best_top1": self.best_top1,
            **asdict(self.proof),
            "params": {"training": before.params, "deploy": after.params},
            "macs": {"training": before.macs, "deploy": after.macs},
            "layers": {"training": before.layers, "deploy": after.layers},
            "corrupt": self.corrupt,
            **({} if self.pruned is None else {"pruned": self.pruned.to_dict()}),
            "files": [str(path) for path in self.files],
        }


def with_weights(job: Job) -> nn.Module:
    """A network as the recipe makes it, with the weights that were trained, averaged ones if there are.

    Call it on every process: where weights are spread over several, they come together.
    """
    state = job.accelerator.get_state_dict(job.network)
    if job.ema is not None:
        state = job.ema.module.state_dict()
    network = copy.deepcopy(job.blank)
    network.load_state_dict({key: value.detach().cpu() for key, value in state.items()})
    return network.eval()


def finish(job: Job, folder: Folder, corrupt: int, best: float) -> Result | None:
    """Write the trained network, collapse it, and prove both equal on the validation set; on the main process.

    Raises:
        UnbranchError: if they aren't; the trained network is written by then.
    """
    network = with_weights(job)
    if not job.accelerator.is_main_process:
        job.accelerator.wait_for_everyone()
        return None
    save(network, folder.path / LAST)
    batches = validation_loader(job.recipe, job.data)
    example = next(iter(batches))["image"][:1]
    if job.resrep is None:
        plain, pruned = collapse(network, example), None
        proof = prove(network, plain, batches, job.accelerator.device)
    else:
        plain, proof, pruned = _prune(job, network, example, batches)
    save(plain.cpu(), folder.path / DEPLOY)
    files = tuple(folder.path / name for name in (RECIPE, LAST, BEST, DEPLOY, RESULT))
    result = Result(
        job.recipe.model.name, job.data.name, best, proof, report(plain, "collapse"), corrupt, files, pruned
    )
    folder.write_text(RESULT, json.dumps(result.to_dict(), indent=2) + "\n")
    job.accelerator.wait_for_everyone()
    return result


def _prune(job: Job, network: nn.Module, example: Any, batches: Any) -> tuple[nn.Module, Proof, Pruned]:
    """The pruned network, proved to be the trained one with small rows of its compactors set to zero."""
    settings, resrep = job.recipe.prune, job.resrep
    assert settings is not None
    assert resrep is not None
    device, inputs = job.accelerator.device, (example,)
    graph, plain = collapse_for(network, inputs, resrep.graph)
    limits = Limits(minimum=settings.minimum, multiple=settings.multiple)
    keep = kept_channels(network, graph, settings.threshold, limits, settings.masked)
    trained, whole = with_zero_rows(network, graph, keep), copy.deepcopy(plain)
    plain = without_channels(network, plain, inputs, graph, keep)

    def form(double: nn.Module, x: Any) -> nn.Module:
        return finalize(
            double, x, threshold=settings.threshold, multiple=settings.multiple, minimum=settings.minimum, graph=graph
        )  # fmt: skip

    proof = prove(trained, plain, batches, device, form)
    pruned = Pruned(
        score(copy.deepcopy(job.blank), batches, device),
        score(network, batches, device),
        report(plain, "prune"),
        resrep.progress(),
        compare_latency(whole, plain.cpu(), example),
    )
    return plain, proof, pruned
