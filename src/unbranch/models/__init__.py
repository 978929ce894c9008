"""Networks: by name from other libraries, small ones of our own, and the files that hold their weights."""

from unbranch.models.checkpoints import Manifest, load_weights, read_manifest, read_weights, write_weights
from unbranch.models.deployed import rebuild
from unbranch.models.names import create, example_input, input_size
from unbranch.models.small import small_resnet
from unbranch.models.statistics import randomise_statistics

__all__ = [
    "Manifest",
    "create",
    "example_input",
    "input_size",
    "load_weights",
    "randomise_statistics",
    "read_manifest",
    "read_weights",
    "rebuild",
    "small_resnet",
    "write_weights",
]
