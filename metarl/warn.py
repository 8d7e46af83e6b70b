"""Warnings that point at the user's own line, however deep in this package they arise."""

import sys
import warnings


def warn_caller(text: str) -> None:
    """Give a UserWarning at the line outside this package that called into it."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "metarl":
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)
