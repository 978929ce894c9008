"""Rendering: plain values in, tables on the terminal out."""

from unbranch.report.console import (
    console,
    cost_table,
    count,
    progress_bar,
    show_files,
    show_report,
    show_verification,
)

__all__ = [
    "console",
    "cost_table",
    "count",
    "progress_bar",
    "show_files",
    "show_report",
    "show_verification",
]
