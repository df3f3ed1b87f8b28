"""The outputter of runners that have already shown a table to the person at the terminal."""

from __future__ import annotations

from typing import Any


def output(data: Any, **kwargs: Any) -> str:
    """Return nothing to print; the data still carry the exit code."""
    del data, kwargs
    return ""
