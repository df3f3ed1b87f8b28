"""Settings that a running kernel shows as files: sysctls, huge pages, the CPUs' governor."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiplatform.errors import PlatformError

ROOT = Path("/")
HUGE_PAGES = "sys/kernel/mm/transparent_hugepage/enabled"
GOVERNORS = "sys/devices/system/cpu"
_CHOSEN = re.compile(r"\[(\S+)\]")


@dataclass
class Outcome:
    """What differs, and what cannot be set here and why."""

    wanted: dict[Path, tuple[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def changes(self) -> dict[str, dict[str, str]]:
        """The differences as a state reports them."""
        return {str(path): {"old": old, "new": new} for path, (old, new) in self.wanted.items()}

    def notes(self) -> str:
        """The skipped ones in a sentence; empty where there are none."""
        return "; ".join(f"{path} skipped: {reason}" for path, reason in sorted(self.skipped.items()))


def files(tuning: Mapping[str, Any], root: Path = ROOT) -> dict[Path, str]:
    """Return the kernel's file of each setting and the value that it should have.

    :param tuning: pillar ``ollama:tuning``: ``sysctl``, ``transparent_hugepages``, ``cpu_governor``.
    """
    wanted = {root / "proc/sys" / key.replace(".", "/"): str(value) for key, value in tuning["sysctl"].items()}
    if tuning["transparent_hugepages"]:
        wanted[root / HUGE_PAGES] = tuning["transparent_hugepages"]
    if tuning["cpu_governor"]:
        found = sorted((root / GOVERNORS).glob("cpu[0-9]*/cpufreq/scaling_governor"))
        named = found or [root / GOVERNORS / "cpu0/cpufreq/scaling_governor"]
        wanted |= dict.fromkeys(named, tuning["cpu_governor"])
    return wanted


def compare(wanted: Mapping[Path, str]) -> Outcome:
    """Compare the files with what they should hold; touches nothing."""
    outcome = Outcome()
    for path, value in wanted.items():
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError as err:
            outcome.skipped[str(path)] = err.strerror or type(err).__name__
            continue
        chosen = _CHOSEN.search(text)
        current = chosen.group(1) if chosen else text
        if current == value:
            continue
        if os.access(path, os.W_OK):
            outcome.wanted[path] = (current, value)
        else:
            outcome.skipped[str(path)] = f"read-only, stays {current}"
    return outcome


def apply(outcome: Outcome) -> None:
    """Write what differs.

    Raises ``PlatformError`` where the kernel does not take a value.
    """
    for path, (old, new) in outcome.wanted.items():
        try:
            path.write_text(new, encoding="ascii")
        except OSError as err:
            raise PlatformError(
                "The kernel refused a setting", where=str(path), expected=new, actual=f"{old} ({err.strerror})"
            ) from err
