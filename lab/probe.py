"""Run on a host: print as JSON what its container uses, read from its control groups.

``docker stats`` shows zeros where a systemd inside a container has mounted further groups.
"""

import json
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
SAMPLE_SECONDS = 0.5
INACTIVE = ("total_inactive_file", "inactive_file")


def group(controller: str) -> Path:
    """The container's folder of a controller; version 2 has one for all."""
    for line in Path("/proc/1/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(",") or (not names and not (ROOT / controller).exists()):
            return ROOT / (controller if names else "") / path.removesuffix("/init.scope").lstrip("/")
    return ROOT


def memory() -> int:
    """Bytes in use, without the files that the kernel would drop first."""
    folder = group("memory")
    name = "memory.usage_in_bytes" if (folder / "memory.usage_in_bytes").exists() else "memory.current"
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int((folder / name).read_text()) - int(next((stat[key] for key in INACTIVE if key in stat), 0))


def cpu_seconds() -> float:
    """CPU time used so far."""
    old = group("cpuacct") / "cpuacct.usage"
    if old.exists():
        return int(old.read_text()) / 1e9
    stat = dict(line.split() for line in (group("cpu") / "cpu.stat").read_text().splitlines())
    return int(stat["usage_usec"]) / 1e6


before = cpu_seconds()
time.sleep(SAMPLE_SECONDS)
print(json.dumps({"memory": memory(), "cpu": (cpu_seconds() - before) / SAMPLE_SECONDS * 100}))
