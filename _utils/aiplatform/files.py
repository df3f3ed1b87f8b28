"""Files: read where they may not be there, and written so that a crash leaves no half of one."""

from __future__ import annotations

import os
import secrets
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


def write_durably(target: Path, content: bytes, mode: int, group: int = -1) -> None:
    """Replace ``target`` by ``content`` with file mode ``mode``; a crash leaves the old or the new file.

    group
        The id of the file's group; -1 for this process's own.
    """
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchown(stream.fileno(), -1, group)
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        draft.replace(target)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    """Make renames and removals in ``path`` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
