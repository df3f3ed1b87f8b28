"""What the control groups around a host's services allow them, of either version of the kernel's interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiplatform.files import kernel_text

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
# Version 1 writes "no limit" as the greatest number of whole pages; no machine has this much (1 EiB).
NO_LIMIT = 2**60


@dataclass(frozen=True)
class Limits:
    """CPUs (as many as may run at once, on average) and bytes of memory, in all; None: no limit."""

    cpus: float | None = None
    memory: int | None = None


def limits(pid: int = 1, proc: Path = PROC, cgroups: Path = CGROUPS) -> Limits:
    """Return the least limits of a process's groups and of those above them.

    :param pid: services inherit from process 1, also in a container.
    :param proc: where the process's ``cgroup`` is.
    :param cgroups: where the groups are mounted.
    """
    cpus, memory = [], []
    for folder in _folders(kernel_text(proc / str(pid) / "cgroup"), cgroups):
        cpus.append(_cpus(folder))
        memory.append(_memory(folder))
    return Limits(
        min((found for found in cpus if found), default=None),
        min((found for found in memory if found), default=None),
    )


def memory_left(pid: int = 1, proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the bytes of memory that a process's groups and those above them still leave it; None: no limit.

    What they keep of files that no process has mapped is given up first, such as a model just pulled, so it counts as
    left; the weights of a loaded one do not. Arguments as of ``limits``.
    """
    folders = list(_folders(kernel_text(proc / str(pid) / "cgroup"), cgroups))
    bounds = [(folder, limit) for folder in folders if (limit := _memory(folder))]
    return min((max(0, limit - _used(folder)) for folder, limit in bounds), default=None)


def counter(pid: int, file: str, name: str, proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return what a process's groups count in a file of lines ``name number``, such as ``oom_kill``; 0 where none does.

    :param file: ``memory.events``, ``memory.oom_control`` (version 1), ``cpu.stat``.
    """
    groups = [row.split(":", 2) for row in kernel_text(proc / str(pid) / "cgroup").splitlines()]
    texts = [kernel_text(cgroups / kinds.removeprefix("name=") / path.strip("/") / file) for _, kinds, path in groups]
    rows = [line.split() for text in texts for line in text.splitlines()]
    return sum(int(row[1]) for row in rows if len(row) == 2 and row[0] == name and row[1].isdecimal())


def _folders(listing: str, cgroups: Path) -> Iterator[Path]:
    for line in listing.splitlines():
        _, controllers, path = line.split(":", 2)
        root = cgroups / controllers.removeprefix("name=")
        group = root / path.strip("/")
        yield group
        # What is above the mounted root cannot be seen from here.
        yield from (above for above in group.parents if above.is_relative_to(root))


def _memory(folder: Path) -> int | None:
    limit = _number(kernel_text(folder / "memory.max") or kernel_text(folder / "memory.limit_in_bytes"))
    return limit if limit and limit < NO_LIMIT else None


def _used(folder: Path) -> int:
    used = _number(kernel_text(folder / "memory.current") or kernel_text(folder / "memory.usage_in_bytes"))
    rows = dict(line.split() for line in kernel_text(folder / "memory.stat").splitlines())
    # Version 1 counts the groups below in rows of their own.
    whole = "total_" if "total_inactive_file" in rows else ""
    files = sum(int(rows.get(f"{whole}{kind}_file", 0)) for kind in ("active", "inactive"))
    mapped = int(rows.get("file_mapped", rows.get("total_mapped_file", 0)))
    return (used or 0) - max(0, files - mapped)


def _cpus(folder: Path) -> float | None:
    quota, _, period = kernel_text(folder / "cpu.max").partition(" ")
    quota = quota or kernel_text(folder / "cpu.cfs_quota_us")
    period = period or kernel_text(folder / "cpu.cfs_period_us")
    allowed, window = _number(quota), _number(period)
    return allowed / window if allowed and window else None


def _number(text: str) -> int | None:
    """``max`` and -1 are no limit."""
    return int(text) if text.isdecimal() else None
