"""Settling what was measured: the selection file and the report, on a master or on a server without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiplatform import choice, report, report_files
from aiplatform.errors import PlatformError

# What a dry run can say before everything is measured.
LATER = {"selection": "chosen from what is still to be measured"}


@dataclass(frozen=True)
class Places:
    """Where the selection and the reports are written, and the formulas, which hold the report's template."""

    selection: Path
    reports: Path
    state_tree: Path

    @classmethod
    def of(cls, opts: Mapping[str, Any], pillar: Mapping[str, Any]) -> Places:
        """Return the places: the first pillar root, and the folder that pillar names or that of the checkout.

        opts
            Salt's options, with ``pillar_roots`` and ``file_roots``.
        """
        state_tree = Path(opts["file_roots"]["base"][0])
        folder = pillar["benchmark"]["report_dir"] or state_tree.parent / "benchmarks" / "results"
        return cls(choice.path(opts["pillar_roots"]["base"]), Path(folder), state_tree)


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
    if not changes and not report_files.latest(places.reports):
        changes = {"report": {"old": None, "new": "written"}}
    if not changes:
        return {"changes": {}, "comment": "The selection is as measured", "selection": new}
    if test:
        return {"changes": changes, "comment": "Would be chosen anew", "selection": new}
    # A choice whose report failed would never get one: the next run finds nothing that has changed.
    path = write_report(places, new, pillar, before=old)
    if new != old:
        choice.write(places.selection, new)
    return {"changes": changes, "comment": f"Chosen; report {path.with_suffix('.html')}", "selection": new}


def write_report(
    places: Places, selection: Mapping[str, Any], pillar: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> Path:
    """Write the report of a selection, with all earlier runs as its history; return the path of its data.

    Of the earlier runs those count that can be read.

    before
        The selection that this one takes the place of; where it is left out, no slot counts as changed.
    """
    if not selection:
        raise PlatformError("There is nothing to report", expected="a selection", hint="salt-run benchmark.run")
    earlier = report_files.earlier(places.reports)
    made = report.document(selection, pillar, datetime.now(UTC), selection if before is None else before, earlier)
    return report_files.write(places.reports, made, places.state_tree)
