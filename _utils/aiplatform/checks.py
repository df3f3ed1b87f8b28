"""Checks that name the host, what was checked, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from salt.exceptions import CommandExecutionError

GIGABYTE = 10**9


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    ``check`` is its name with its argument, such as ``free space on /mnt/ai_data``; ``expected`` and ``actual``
    are in words, numbers with their units; ``hint`` is what to do where it failed.
    """

    check: str
    ok: bool
    expected: str
    actual: str
    hint: str = ""

    def on(self, host: str) -> dict[str, Any]:
        """Return the finding as data, with the host it was made on."""
        return {"host": host} | vars(self)


def sentence(finding: Mapping[str, Any]) -> str:
    """Return a finding's four fields as one line, and the hint where it failed."""
    line = "host: {host}; check: {check}; expected: {expected}; actual: {actual}".format(**finding)
    return line if finding["ok"] or not finding.get("hint") else f"{line}; next: {finding['hint']}"


def state(name: str, finding: Mapping[str, Any]) -> dict[str, Any]:
    """Return a finding as the return of a state; a check never changes anything, so a dry run makes it too."""
    return {"name": name, "result": bool(finding["ok"]), "changes": {}, "comment": sentence(finding)}


def run(name: str, check: Callable[[], Finding]) -> Finding:
    """Return the check's finding; a check that cannot be made has failed."""
    try:
        return check()
    except (CommandExecutionError, OSError, LookupError, TypeError, ValueError) as err:
        return Finding(name, ok=False, expected="the check can be made", actual=str(err) or type(err).__name__)
