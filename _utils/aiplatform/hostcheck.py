"""What a host must be before the platform is put on it. Reads only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiplatform.checks import GIGABYTE, Finding

_LISTENING = "0A"


def root(uid: int) -> Finding:
    """Salt must run as root."""
    return Finding("Salt's user", uid == 0, "uid 0 (root)", f"uid {uid}", "start salt-minion as root")


def system(grains: Mapping[str, Any], supported: Mapping[str, Sequence[int]]) -> Finding:
    """The operating system must be one that the formulas know.

    grains
        The host's grains.
    supported
        Major versions by family.
    """
    family, major = str(grains["os_family"]), int(grains["osmajorrelease"])
    known = ", ".join(f"{name} {', '.join(map(str, majors))}" for name, majors in supported.items())
    return Finding(
        "operating system", major in supported.get(family, ()), known, f"{grains['os']} {major} (family {family})"
    )


def architecture(grains: Mapping[str, Any], supported: Sequence[str]) -> Finding:
    """The processor must be one that the pinned releases are built for."""
    actual = str(grains["cpuarch"])
    return Finding("architecture", actual in supported, f"one of {', '.join(supported)}", actual)


def clock(now: float, masters: float, most: float) -> Finding:
    """The clock must be close to the master's: logins and certificates depend on it.

    now, masters
        Seconds since 1970, here and on the master when it compiled this host's pillar.
    most
        The largest difference in seconds.
    """
    skew = now - masters
    return Finding(
        "clock against the master's",
        abs(skew) <= most,
        f"at most {most:g} s apart",
        f"{skew:.1f} s apart",
        "set up time synchronisation (systemd-timesyncd, chrony) on both",
    )


def state_jobs(running: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the jobs that run states, for good or as the dry run of a deploy.

    running
        All jobs of a host, as ``saltutil.running`` has them.
    """
    return [job for job in running if str(job["fun"]).startswith(("state.", "dry_run."))]


def other_states(running: Sequence[Mapping[str, Any]]) -> Finding:
    """No other run of states may be under way on the host.

    running
        What is, as ``saltutil.is_running`` and ``state_jobs`` have it.
    """
    actual = ", ".join(f"{job['fun']} {job.get('arg', '')} in pid {job['pid']}, job {job['jid']}" for job in running)
    return Finding(
        "other state runs",
        not running,
        "none",
        actual or "none",
        "wait for it to end (salt-run jobs.active shows it), then run the deploy again",
    )


def mounted(path: str, wanted: bool) -> Finding:
    """The data folder must be on a file system of its own: a missing mount would fill the system's disk.

    wanted
        False where a folder on the system's disk is meant.
    """
    point = Path(path)
    while not point.is_mount():
        point = point.parent
    own = str(point) != "/"
    return Finding(
        f"mount of {path}",
        own or not wanted,
        "a mounted file system" if wanted else "any folder",
        f"on the file system mounted at {point}",
        "mount the data disk there, or set preflight.data_root_mounted to false",
    )


def free_space(path: str, least_gb: float, counted: str = "") -> Finding:
    """There must be room on the file system of ``path``, or of the part of it that is there.

    least_gb
        What must be free, in GB (10^9 bytes).
    counted
        A folder whose content counts as free: what the platform has stored already was room before.
    """
    place = Path(path)
    while not place.exists():
        place = place.parent
    stats = os.statvfs(place)
    free = stats.f_bavail * stats.f_frsize
    kept = stored(Path(counted)) if counted and free < least_gb * GIGABYTE else 0
    actual = f"{free / GIGABYTE:.1f} GB free" + (f", {kept / GIGABYTE:.1f} GB stored already" if kept else "")
    enough = free + kept >= least_gb * GIGABYTE
    return Finding(f"free space on {path}", enough, f"at least {least_gb:g} GB", actual)


def stored(folder: Path) -> int:
    """Return the bytes that the files below a folder take on disk."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # A download or a database at work may take its file away meanwhile.
            with contextlib.suppress(FileNotFoundError):
                # Joined as text: this walks every file of a store, and needs no Path of each.
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512  # noqa: PTH118
    return total


def port(number: int, owner: str, proc: Path = Path("/proc")) -> Finding:
    """A port must be free, or held by the service it is meant for.

    number
        The TCP port.
    owner
        The name of the process that may hold it.
    proc
        Where the kernel shows its processes.
    """
    inodes = _listening(number, proc)
    holders = {name for name in _holders(inodes, proc) if name != owner} if inodes else set()
    actual = f"held by {', '.join(sorted(holders))}" if holders else f"held by {owner}" if inodes else "free"
    return Finding(
        f"port {number}",
        not holders,
        f"free, or held by {owner}",
        actual,
        "stop that process, or give the platform's service another port in pillar",
    )


def _listening(number: int, proc: Path) -> set[str]:
    """Return the inodes of the sockets that listen on a TCP port.

    Addresses of loopback beyond the first, such as that of systemd's resolver, leave the port free for the platform.
    """
    found = set()
    for table in ("net/tcp", "net/tcp6"):
        path = proc / table
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            address, number_there = fields[1].rsplit(":", 1)
            aside = len(address) == 8 and address.endswith("7F") and address != "0100007F"
            if fields[3] == _LISTENING and int(number_there, 16) == number and not aside:
                found.add(fields[9])
    return found


def _holders(inodes: set[str], proc: Path) -> set[str]:
    """Return the names of the processes that have one of these sockets open."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return {name for process in proc.glob("[0-9]*") if (name := _holder(process, wanted))} or {"an unknown process"}


def _holder(process: Path, wanted: set[str]) -> str:
    try:
        # The link's text is compared ("socket:[...]"), which is no path.
        if any(os.readlink(handle) in wanted for handle in (process / "fd").iterdir()):  # noqa: PTH115
            return (process / "comm").read_text().strip()
    except OSError:
        # It has ended meanwhile.
        return ""
    return ""
