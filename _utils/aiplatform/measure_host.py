"""Whether a host was disturbed while something was measured on it: steal, others' load, waiting for memory, throttling.

Everything is read from procfs and sysfs; what a host does not have there counts as undisturbed.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import Any

from aiplatform import numa
from aiplatform.files import kernel_text

PROC = Path("/proc")
CPUS = Path("/sys/devices/system/cpu")
TICKS = os.sysconf("SC_CLK_TCK")
# The kernel counts in hundredths of a second: of a shorter time a share would be chance.
LEAST_SECONDS = 0.5
CLOCK_SECONDS = 1.0
_STALLED = re.compile(r"^some .*\btotal=(\d+)", re.MULTILINE)
_THROTTLES = ("core_throttle_count", "package_throttle_count")


@dataclass(frozen=True)
class Reading:
    """Counters of a moment. All are seconds since some start, but ``throttled``, which counts how often."""

    at: float
    busy: float
    steal: float
    own: float | None
    stalled: float
    throttled: int


def read(cpus: Collection[int], server: int, proc: Path = PROC, sysfs: Path = CPUS, weights: str = "") -> Reading:
    """Read the counters of some CPUs.

    server
        The process whose work, with that of its descendants, is no disturbance; 0: it is not known.
    weights
        As ``family_seconds`` takes them.
    """
    busy, steal = _cpu_seconds(kernel_text(proc / "stat"), cpus)
    stalled = _STALLED.search(kernel_text(proc / "pressure/memory"))
    counts = (kernel_text(sysfs / f"cpu{cpu}/thermal_throttle/{name}") for cpu in cpus for name in _THROTTLES)
    return Reading(
        at=time.monotonic(),
        busy=busy,
        steal=steal,
        own=family_seconds(server, proc, weights) if server else None,
        stalled=int(stalled.group(1)) / 1e6 if stalled else 0.0,
        throttled=sum(int(text or 0) for text in counts),
    )


def _cpu_seconds(stat: str, cpus: Collection[int]) -> tuple[float, float]:
    """Return busy and stolen seconds of these CPUs, out of ``/proc/stat`` (proc(5): user … softirq, steal)."""
    busy = steal = 0
    for line in stat.splitlines():
        name, *numbers = line.split()
        if name[3:].isdigit() and name.startswith("cpu") and int(name[3:]) in cpus:
            user, nice, system, _, _, irq, softirq, stolen = (int(number) for number in numbers[:8])
            busy += user + nice + system + irq + softirq
            steal += stolen
    return busy / TICKS, steal / TICKS


def family_seconds(server: int, proc: Path = PROC, weights: str = "") -> float:
    """Return the CPU seconds of a process and all its descendants, those that have ended included.

    weights
        The digest of the weights that an Ollama server is asked for: its runners of other models do not count, whether
        they live or have ended. Empty: all count.
    """
    seconds, family = 0.0, [server]
    for pid in family:
        # The name in parentheses may hold anything, spaces and parentheses too.
        fields = kernel_text(proc / str(pid) / "stat").rpartition(")")[2].split()
        # What a server's children took that have ended: those were runners of other models.
        counted = fields[11:13] if weights and pid == server else fields[11:15]
        seconds += sum(int(number) for number in counted) / TICKS
        for task in (proc / str(pid) / "task").glob("*"):
            children = map(int, kernel_text(task / "children").split())
            family += [child for child in children if weights in (numa.weights_of(child, proc) or weights)]
    return seconds


def shares(before: Reading, after: Reading, cpus: int) -> dict[str, float]:
    """Return of the time between two readings the shares of ``steal``, ``others`` and ``memory``; {} of a moment.

    cpus
        How many CPUs were read.
    """
    seconds = after.at - before.at
    if seconds < LEAST_SECONDS:
        return {}
    others = 0.0
    if before.own is not None and after.own is not None:
        others = max(0.0, after.busy - before.busy - (after.own - before.own))
    found = {"steal": (after.steal - before.steal) / cpus, "others": others / cpus}
    found["memory"] = after.stalled - before.stalled
    return {key: value / seconds for key, value in found.items()}


_WORDS = {
    "steal": "{:.0%} of the CPUs' time was stolen by other guests of the machine",
    "others": "other programs took {:.0%} of the CPUs' time",
    "memory": "programs waited for memory in {:.0%} of the time",
}


class Watch:
    """Looks at some CPUs while the body of a ``with`` runs; one object for all tests of an instance."""

    def __init__(
        self, cpus: Collection[int], server: int, limits: Mapping[str, Any], proc: Path = PROC, sysfs: Path = CPUS
    ) -> None:
        """Take the CPUs, the process that works there on purpose, and pillar ``benchmark:disturbance``."""
        self._cpus, self._server, self._limits = frozenset(cpus), server, limits
        self._proc, self._sysfs, self._weights = proc, sysfs, ""
        self._before = self._after = Reading(0, 0, 0, None, 0, 0)
        self._clock = Clock(min(cpus), sysfs)

    def over(self, weights: str) -> Watch:
        """Return itself, for a test of the model with this weights digest: a client of another model disturbs it."""
        self._weights = weights
        return self

    def __enter__(self) -> Watch:
        """Begin to look."""
        self._clock.start()
        self._before = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._after = self._read()
        self._clock.stop()

    def _read(self) -> Reading:
        return read(self._cpus, self._server, self._proc, self._sysfs, self._weights)

    def disturbances(self) -> dict[str, float]:
        """Return what was more than the limits allow: {words: by how many times}."""
        found = {}
        for key, share in shares(self._before, self._after, len(self._cpus)).items():
            limit = self._limits[f"max_{key}"]
            if share > limit:
                found[_WORDS[key].format(share)] = share / limit
        throttled = self._after.throttled - self._before.throttled
        if throttled:
            found[f"the CPUs were throttled {throttled} times, they were too hot"] = float(throttled)
        slow = self._clock.slowdown()
        if slow > self._limits["max_slowdown"]:
            found[f"the CPUs' clock was {slow:.0%} slower than before"] = slow / self._limits["max_slowdown"]
        return found


class Clock:
    """How fast a CPU's clock is while tests run; asked beside them, once a second, where the kernel tells it."""

    def __init__(self, cpu: int, sysfs: Path = CPUS) -> None:
        self._path = sysfs / f"cpu{cpu}/cpufreq/scaling_cur_freq"
        self._fastest = 0.0
        self._seen: list[float] = []
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._seen, self._end = [], threading.Event()
        if self._path.exists():
            self._thread = threading.Thread(target=self._watch, args=(self._end,), daemon=True)
            self._thread.start()

    def _watch(self, end: threading.Event) -> None:
        while not end.wait(CLOCK_SECONDS):
            self._seen.append(float(kernel_text(self._path) or 0))

    def stop(self) -> None:
        """End, and keep the fastest mean of all tests so far."""
        self._end.set()
        if self._thread:
            self._thread.join()
        self._fastest = max(self._fastest, mean(self._seen or [0.0]))

    def slowdown(self) -> float:
        """Return by which share the last test's clock was slower than the fastest so far."""
        return 1 - mean(self._seen) / self._fastest if self._seen and self._fastest else 0.0
