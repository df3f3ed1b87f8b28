"""The files of the benchmark's runs: the data of each as JSON, and beside it the pages that are made of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiplatform import plots, report, report_html
from aiplatform.errors import PlatformError

log = logging.getLogger(__name__)

PAGES = (".md", ".html")
_NAME = re.compile(r"benchmark_\d{8}T\d{6}")


def runs(folder: Path) -> list[Path]:
    """Return the data files of all runs, oldest first."""
    return sorted(path for path in folder.glob("benchmark_*.json") if _NAME.fullmatch(path.stem))


def latest(folder: Path) -> Path | None:
    """Return the data file of the latest run; None where there is none."""
    return max(runs(folder), default=None)


def find(folder: Path, name: str) -> Path:
    """Return the data file of one run.

    name
        Its time as in its name, ``20260102T030405``; the name itself or a path does as well.

    Raises ``PlatformError`` naming the runs that there are.
    """
    wanted = Path(name).stem.removeprefix("benchmark_")
    known = {path.stem.removeprefix("benchmark_"): path for path in runs(folder)}
    if wanted not in known:
        raise PlatformError(
            "There is no such run of the benchmark",
            where=str(folder),
            expected=f"one of {', '.join(known)}" if known else "a run; salt-run benchmark.run makes one",
            actual=name,
        )
    return known[wanted]


def read(path: Path) -> dict[str, Any]:
    """Return the data of a run.

    Raises ``PlatformError`` where it cannot be read, or is of another format.
    """
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise _unreadable(path, str(err)) from err
    found = made.get("format") if isinstance(made, dict) else None
    if found != report.FORMAT:
        raise _unreadable(path, f"format {found}")
    return dict(made)


def earlier(folder: Path) -> list[dict[str, Any]]:
    """Return the data of all runs, oldest first; one that cannot be read is left out, and the log names it."""
    found = []
    for path in runs(folder):
        try:
            found.append(read(path))
        except PlatformError as err:
            log.warning("%s", err)
    return found


def _unreadable(path: Path, actual: str) -> PlatformError:
    return PlatformError(
        "A run of the benchmark cannot be read",
        where=str(path),
        expected=f"JSON of format {report.FORMAT}",
        actual=actual,
        hint="restore the file, or move it away: the history then lacks this run",
    )


def write(folder: Path, made: Mapping[str, Any], state_tree: Path) -> Path:
    """Write a run's data and its pages; return the path of the data.

    state_tree
        The folder of the formulas, which holds the page's template.
    """
    path = folder / f"{_stem(made)}.json"
    pages = {suffix: _page(suffix, made, state_tree) for suffix in PAGES}
    _write(path, json.dumps(made, indent=1) + "\n")
    for suffix, text in pages.items():
        _write(path.with_suffix(suffix), text)
    return path


def ensure_pages(path: Path, state_tree: Path) -> None:
    """Write those pages of a run that are missing."""
    made = read(path)
    for suffix in PAGES:
        if not path.with_suffix(suffix).exists():
            _write(path.with_suffix(suffix), _page(suffix, made, state_tree))


def _stem(made: Mapping[str, Any]) -> str:
    return report.stem(report.time_of(made))


def _page(suffix: str, made: Mapping[str, Any], state_tree: Path) -> str:
    if suffix == ".md":
        return report.markdown(made)
    return report_html.page(made, plots.all_of(made) if plots.available() else None, state_tree)


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as err:
        raise PlatformError(
            "The report cannot be written", where=str(path), actual=str(err), hint="free space, or mend the rights"
        ) from err
