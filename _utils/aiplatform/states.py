"""One way to build the return of a state: find the changes, then make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

Changes = dict[str, Any]
# What a change of a file may consist of besides what stands in it.
OWNERSHIP = {"user", "group", "mode"}


def converge(
    name: str,
    plan: Callable[[], Changes],
    apply: Callable[[], object],
    test: bool,
) -> dict[str, Any]:
    """Make what ``plan`` reports, and return what a Salt state returns.

    name
        The state's name.
    plan
        Compares without touching anything; returns the changes, empty where all is as wanted.
    apply
        Makes those changes. Not called under ``test`` or where there are none.
    test
        Whether this is a dry run; it reports the same changes as the real run.

    A ``CommandExecutionError`` (of which ``PlatformError`` is one) becomes a failed state; its notes are told, too.
    """
    result: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": "Already as wanted"}
    try:
        changes = plan()
        if not changes:
            return result
        if test:
            return result | {"result": None, "changes": changes, "comment": "Would be changed"}
        apply()
    except CommandExecutionError as err:
        return result | {"result": False, "comment": "\n".join([str(err), *getattr(err, "__notes__", [])])}
    return result | {"changes": changes, "comment": "Changed"}


def holds(name: str, refuse: Callable[[], object], test: bool) -> dict[str, Any]:
    """Return the state of something that is looked at and never changed.

    name
        The state's name.
    refuse
        Looks; raises ``PlatformError`` where it is not as it has to be.
    test
        Whether this is a dry run, which refuses the same.
    """

    def plan() -> Changes:
        refuse()
        return {}

    return converge(name, plan, dict, test)


def foreseen(rows: Mapping[str, Mapping[str, Any]], *places: str) -> bool:
    """Return whether an earlier state of this dry run would change what stands in a file, which it has not written.

    rows
        Salt's ``__running__``: the returns of this run's states so far. In a real run none of them is foreseen.
    places
        Paths of files, and of folders with files.
    """
    for key, row in rows.items():
        name, function = key.split("_|-")[-2:]
        within = any(f"{name}/".startswith(f"{place}/") for place in places)
        if within and function != "directory" and row["result"] is None and row["changes"].keys() - OWNERSHIP:
            return True
    return False


def foresees(rows: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether an earlier state of this dry run would change something; none has, in a real run.

    rows
        Salt's ``__running__``.
    """
    return any(row["result"] is None for row in rows.values())


def diff(current: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> Changes:
    """Compare what is with what is wanted.

    current
        The values in place; None where the thing does not exist.
    wanted
        The values that should be in place. Keys that stand only in ``current`` are left alone.

    Returns ``{key: {"old": …, "new": …}}`` for each wanted key whose value differs.
    """
    have = current or {}
    return {
        key: {"old": have.get(key), "new": value}
        for key, value in wanted.items()
        if key not in have or have[key] != value
    }
