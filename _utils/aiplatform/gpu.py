"""Which kinds of GPU a host can compute on: those whose driver is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

# A driver's own trace. The device nodes of NVIDIA's are made by the first program that asks for them; under WSL2 the
# driver is that of Windows, which lays its library there.
TRACES = {
    "nvidia": ("proc/driver/nvidia/version", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1"),
    "amd": ("dev/kfd",),
}


def found(root: Path = Path("/")) -> list[str]:
    """Return the vendors, of nvidia and amd, whose driver is loaded.

    root
        Where ``proc`` and ``dev`` are.
    """
    return [vendor for vendor, traces in TRACES.items() if any((root / trace).exists() for trace in traces)]


def in_containers(root: Path = Path("/")) -> list[str]:
    """Return the vendors whose devices Docker hands to a container; for NVIDIA's it needs the toolkit's hook.

    Without it a container that asks for devices is made, and then does not start.
    """
    hook = shutil.which("nvidia-container-runtime-hook")
    return [vendor for vendor in found(root) if vendor != "nvidia" or hook]


def used(wanted: str | bool, root: Path = Path("/")) -> bool:
    """Return whether a service is to reach GPU devices.

    wanted
        true, false, or auto: where a driver is found.
    """
    return bool(found(root)) if wanted == "auto" else wanted is True
