"""Settings of the whole suite: one thread, and hypothesis profiles (choose one with HYPOTHESIS_PROFILE)."""

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=60, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
