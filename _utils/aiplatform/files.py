"""Files that may not be there."""

from __future__ import annotations

from pathlib import Path


def text_of(path: str | Path) -> str:
    """Return what a file says; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def kernel_text(path: Path) -> str:
    """Return what a file below ``/proc`` or ``/sys`` says, without white space around it.

    Empty where the kernel has none: the process has ended, or the machine does not tell.
    """
    try:
        return path.read_bytes().decode("utf-8", "replace").strip()
    except OSError:
        return ""
