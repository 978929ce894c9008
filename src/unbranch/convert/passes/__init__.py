"""Passes over a trace: analyses, and rewrites to a form that can be interpreted."""
