"""Decide where merged layers go, and write them into a copy of the network."""
