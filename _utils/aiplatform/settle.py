"""Settling what was measured: the selection file and the report, on a master or on a server without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiplatform import choice, report
from aiplatform.errors import PlatformError

# What a dry run can say before everything is measured.
LATER = {"selection": "chosen from what is still to be measured"}


@dataclass(frozen=True)
class Places:
    """Where the selection and the reports are written."""

    selection: Path
    reports: Path

    @classmethod
    def of(cls, opts: Mapping[str, Any], pillar: Mapping[str, Any]) -> Places:
        """Return the places: the first pillar root, and the folder that pillar names or that of the checkout.

        opts
            Salt's options, with ``pillar_roots`` and ``file_roots``.
        """
        checkout = Path(opts["file_roots"]["base"][0]).parent
        folder = pillar["benchmark"]["report_dir"] or checkout / "benchmarks" / "results"
        return cls(choice.path(opts["pillar_roots"]["base"]), Path(folder))


def settle(
    pillar: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]], places: Places, test: bool
) -> dict[str, Any]:
    """Choose from what hosts have measured; write selection and report where the choice or a figure has changed.

    pillar
        The effective pillar with the ``selection`` so far.
    hosts
        The answers of ``benchmark.results``, by host.
    test
        Write nothing.

    Returns ``changes``, ``comment`` and the new ``selection``.
    """
    old = pillar["selection"]
    new = choice.choose(old, hosts, pillar["benchmark"])
    changes = choice.changes(old, new)
    if not changes and not report.latest(places.reports):
        changes = {"report": {"old": None, "new": "written"}}
    if not changes:
        return {"changes": {}, "comment": "The selection is as measured", "selection": new}
    if test:
        return {"changes": changes, "comment": "Would be chosen anew", "selection": new}
    if new != old:
        choice.write(places.selection, new)
    path = write_report(places.reports, new, pillar)
    return {"changes": changes, "comment": f"Chosen; report {path}", "selection": new}


def write_report(folder: Path, selection: Mapping[str, Any], pillar: Mapping[str, Any]) -> Path:
    """Write the report of a selection and return its path."""
    if not selection:
        raise PlatformError("There is nothing to report", expected="a selection", hint="salt-run benchmark.run")
    now = datetime.now(UTC)
    path = folder / report.file_name(now)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(report.markdown(selection, pillar, now), encoding="utf-8")
    except OSError as err:
        raise PlatformError("The report cannot be written", where=str(path), actual=str(err)) from err
    return path
