"""Answers of runners: a table for people, data for programs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from aiplatform.errors import PlatformError

_silent: list[bool] = []


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows under their headers in columns as wide as what they hold; an empty string without rows."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    lines = [list(headers), ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def answer(opts: Mapping[str, Any], data: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return what a runner returns, and show ``text`` to a person at a terminal.

    opts
        ``__opts__`` of the runner.
    data
        The answer as data; ``retcode`` in it becomes the exit code of ``salt-run``.
    text
        The same for people; left out where the caller chose an outputter (``--out=json``).
    """
    if _silent or opts.get("output") or opts.get("quiet") or "fun" not in opts:
        return dict(data)
    sys.stdout.write(f"{text.rstrip()}\n")
    sys.stdout.flush()
    # _output/quiet.py prints nothing more; salt-run still takes its exit code from the data.
    return {"outputter": "quiet", "data": dict(data)}


def answered(
    opts: Mapping[str, Any], context: MutableMapping[str, Any], run: Callable[[], tuple[dict[str, Any], str]]
) -> dict[str, Any]:
    """Return what a runner returns: data and text of ``run``, or its refusal.

    opts, context
        ``__opts__`` and ``__context__`` of the runner.
    run
        Returns the data, ``retcode`` among them, and the same for people.
    """
    hush()
    try:
        data, text = run()
    except PlatformError as err:
        data, text = {"retcode": 1, "error": str(err)}, f"Refused: {err}"
    context["retcode"] = data["retcode"]
    return answer(opts, data, text)


@contextmanager
def silent() -> Iterator[None]:
    """Let the runners that the body calls give their data without showing a text."""
    _silent.append(True)
    try:
        yield
    finally:
        _silent.pop()


def hush() -> None:
    """Keep Salt's remarks about its own unclosed sockets at the end of a process off the terminal."""
    for name in ("salt.runner", "salt.minion", "salt.utils.event"):
        logging.getLogger(name).addFilter(_no_unclosed)


def _no_unclosed(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("unclosed")
