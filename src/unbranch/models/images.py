"""Old names of classes, which pickles of whole models have; use ``unbranch.models``."""

from __future__ import annotations

from unbranch.deprecation import renamed_names

__getattr__ = renamed_names(__name__, {"Takes": "unbranch.models.input_spec.InputSpec"})
