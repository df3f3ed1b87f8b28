"""Where a person gets a secret once: a new file of their own on the master, or their terminal."""

from __future__ import annotations

import os
from pathlib import Path

from aiplatform.errors import PlatformError

TERMINAL = Path("/dev/tty")


def place(file: str) -> Path:
    """Return where a secret goes: to the file, or to the terminal where none is named."""
    return Path(file) if file else TERMINAL


def opened(file: str, problem: str) -> int:
    """Return a descriptor to write a secret to: a new file, readable by its owner only, or the terminal.

    file
        The new file's name; empty for the terminal.
    problem
        What it means that there is no such place, as one sentence.

    Raises ``PlatformError`` where the file exists or cannot be made, or there is no terminal.
    """
    flags = os.O_WRONLY | (os.O_CREAT | os.O_EXCL if file else os.O_NOCTTY)
    try:
        return os.open(place(file), flags, 0o600)
    except OSError as err:
        raise PlatformError(
            problem,
            where=str(place(file)),
            expected="a new file" if file else "a terminal",
            actual=err.strerror,
            hint="name a new file with file=/path, or run this at a terminal",
        ) from err
