"""The zoo: networks by name, one file a family.

Each family registers its networks; ``unbranch.create_model`` makes them.
"""

from unbranch.convert.statistics import randomise_statistics
from unbranch.deprecation import renamed_names
from unbranch.models.backbone import Backbone, FeatureLevel
from unbranch.models.classifier import Classifier
from unbranch.models.features import FeatureExtractor
from unbranch.models.input_spec import InputSpec
from unbranch.models.inputs import example_input, input_size
from unbranch.models.registry import MODELS, ModelEntry, list_models, register_models

# isort: off
# These register their networks, in the order of listings.
from unbranch.models import repvgg, repmlpnet, replknet, repghostnet, mobileone, qarepvgg, unireplknet  # noqa: F401
from unbranch.models import resnet, wide_resnet, mobilenet, vgg  # noqa: F401
# isort: on

__all__ = [
    "MODELS",
    "Backbone",
    "Classifier",
    "FeatureExtractor",
    "FeatureLevel",
    "InputSpec",
    "ModelEntry",
    "example_input",
    "input_size",
    "list_models",
    "randomise_statistics",
    "register_models",
]

__getattr__ = renamed_names(
    __name__,
    {
        "ENTRIES": "MODELS",
        "Entry": "ModelEntry",
        "Loaded": "unbranch.weights.LoadResult",
        "Manifest": "unbranch.weights.Manifest",
        "create": "unbranch.create_model",
        "create_model": "unbranch.create_model",
        "load": "unbranch.load",
        "load_checkpoint": "unbranch.load_checkpoint",
        "load_weights": "unbranch.weights.load_weights",
        "read_manifest": "unbranch.weights.read_manifest",
        "read_weights": "unbranch.weights.read_weights",
        "save": "unbranch.save",
        "tells_its_network": "unbranch.weights.is_self_describing",
        "to_official": "unbranch.to_official",
    },
)
