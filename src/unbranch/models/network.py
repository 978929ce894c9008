"""Old names of classes, which pickles of whole models have; use ``unbranch.models``."""

from __future__ import annotations

from unbranch.deprecation import renamed_names

__getattr__ = renamed_names(
    __name__,
    {
        "Features": "unbranch.models.features.FeatureExtractor",
        "FeatureInfo": "unbranch.models.backbone.FeatureInfo",
        "Head": "unbranch.models.classifier.Head",
        "Level": "unbranch.models.backbone.FeatureLevel",
        "Network": "unbranch.models.classifier.Classifier",
        "Stage": "unbranch.models.stage.Stage",
        "Trunk": "unbranch.models.backbone.Backbone",
    },
)
