"""Which of the releases side by side is in use: switched in one step, and back to the one before until all is well.

``current`` points at the release in use. ``previous`` is there from before a switch until the new release has proved
itself, so a run that was interrupted in between is known, and the way back with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aiplatform.errors import PlatformError

PROC = Path("/proc")
# What the kernel adds to the path of a program whose file is gone.
GONE = " (deleted)"


@dataclass(frozen=True)
class Switch:
    """The releases below ``root``."""

    root: Path

    def current(self) -> str | None:
        """Return the version in use; None where there is none."""
        return self._target("current")

    def previous(self) -> str | None:
        """Return the version to go back to while a switch is not proved; None where there is no such switch."""
        return self._target("previous")

    def to(self, version: str) -> str | None:
        """Use a version from now on; returns the one to go back to, None where none was in use before.

        Raises ``PlatformError`` where that version is not unpacked.
        """
        if not (self.root / version).is_dir():
            raise PlatformError("This version is not unpacked", where=str(self.root / version))
        before = self.previous() or self.current()
        if before is None or before == version:
            self._point("current", version)
            self.keep()
            return None
        self._point("previous", before)
        self._point("current", version)
        return before

    def back(self) -> str | None:
        """Use the version before the switch again; returns it, None where there is none."""
        before = self.previous()
        if before:
            self._point("current", before)
            self.keep()
        return before

    def keep(self) -> None:
        """Stay with the version in use: there is no way back any more."""
        (self.root / "previous").unlink(missing_ok=True)

    def running(self, pid: int, proc: Path | None = None) -> str | None:
        """Return the version that a process runs; None where there is no process.

        A version whose files were exchanged since then is ``<version>, replaced``; what is none of these is named by
        its path.

        pid
            The process; 0 for none.
        """
        try:
            program = str(((proc or PROC) / str(pid) / "exe").readlink())
        except OSError:
            return None
        root, path = self.root.resolve(), Path(program.removesuffix(GONE))
        if not path.is_relative_to(root):
            return program
        version = path.relative_to(root).parts[0]
        return f"{version}, replaced" if program.endswith(GONE) else version

    def _target(self, name: str) -> str | None:
        try:
            return (self.root / name).readlink().name
        except OSError:
            return None

    def _point(self, name: str, version: str) -> None:
        link = self.root / f".{name}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(self.root / version)
        link.replace(self.root / name)
