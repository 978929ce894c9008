"""Without the optional libraries everything but what needs them is there, and that says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPTIONAL = (
    "numpy", "PIL", "yaml", "timm", "torchvision", "accelerate", "sklearn", "datasets", "webdataset", "onnx",
    "onnxruntime", "onnxscript", "h5py", "tensorboard", "torch_pruning",
)  # fmt: skip
BLOCKED = f"""
import sys
class Without:
    "Finds modules as another finder does, but none of the optional libraries."
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {OPTIONAL!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from unbranch.cli import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "collapse"),
        (["explain", "repghostnet_050"], 0, "merged"),
        (["explain", "timm:resnet18"], 1, "timm isn't installed: pip install 'unbranch[vision]'"),
        (["recipes"], 1, "pip install 'unbranch[train]'"),
        (["train", "digits"], 1, "pip install 'unbranch[train]'"),
    ],
)
def test_a_command_works_or_says_what_to_install(arguments: list[str], code: int, words: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", BLOCKED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr[-1000:]
    assert words in done.stdout + done.stderr
