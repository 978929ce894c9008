"""Interpret a trace: each value as an affine map of earlier values."""
