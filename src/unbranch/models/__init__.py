"""Networks: by name from other libraries, small ones of our own, and the files that hold them."""

from unbranch.collapse.statistics import randomise_statistics
from unbranch.models.checkpoints import load_weights, read_weights
from unbranch.models.manifest import Manifest, read_manifest
from unbranch.models.names import create, example_input, input_size
from unbranch.models.saved import load, save, tells_its_network
from unbranch.models.small import small_resnet

__all__ = [
    "Manifest",
    "create",
    "example_input",
    "input_size",
    "load",
    "load_weights",
    "randomise_statistics",
    "read_manifest",
    "read_weights",
    "save",
    "small_resnet",
    "tells_its_network",
]
