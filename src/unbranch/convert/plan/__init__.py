"""Choose which operations to merge, and into which layers."""
