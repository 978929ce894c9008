"""Choose which operations to merge, and build the layers that replace them."""
