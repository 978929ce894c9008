"""Passes over a trace that find or simplify operations before they are interpreted."""
