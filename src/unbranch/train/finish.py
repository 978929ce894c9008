"""The end of a run: the trained network, its collapsed form, and the proof that they are one function."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from unbranch.collapse import Report, collapse
from unbranch.models import save
from unbranch.train.evaluate import Proof, prove
from unbranch.train.folder import BEST, DEPLOY, LAST, RECIPE, RESULT, Folder
from unbranch.train.job import Job, validation_loader


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
    plain = collapse(network, example)
    proof = prove(network, plain, batches, job.accelerator.device)
    save(plain.cpu(), folder.path / DEPLOY)
    files = tuple(folder.path / name for name in (RECIPE, LAST, BEST, DEPLOY, RESULT))
    result = Result(
        job.recipe.model.name, job.data.name, best, proof, cast(Report, plain.collapse_report), corrupt, files
    )
    folder.write_text(RESULT, json.dumps(result.to_dict(), indent=2) + "\n")
    job.accelerator.wait_for_everyone()
    return result
