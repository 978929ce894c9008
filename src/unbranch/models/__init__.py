"""Networks: by name from other libraries, small ones of our own, and the files that hold them."""

from unbranch.convert.statistics import randomise_statistics
from unbranch.models.checkpoints import load_weights, read_weights
from unbranch.models.load import Loaded, load_checkpoint
from unbranch.models.manifest import Manifest, read_manifest
from unbranch.models.names import create, example_input, input_size
from unbranch.models.official import to_official
from unbranch.models.registry import ENTRIES, Entry, list_models
from unbranch.models.saved import load, save, tells_its_network
from unbranch.models.zoo import create_model

__all__ = [
    "ENTRIES",
    "Entry",
    "Loaded",
    "Manifest",
    "create",
    "create_model",
    "example_input",
    "input_size",
    "list_models",
    "load",
    "load_checkpoint",
    "load_weights",
    "randomise_statistics",
    "read_manifest",
    "read_weights",
    "save",
    "tells_its_network",
    "to_official",
]
