"""A line on the terminal for each step of pulling and measuring models, told by the hosts' events."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PULL_TAG = "ai_platform/models/progress"
MEASURE_TAG = "ai_platform/benchmark/progress"


def line(tag: str, data: Mapping[str, Any]) -> str:
    """Return the line for one event; empty where it is about something else.

    tag, data
        The event as it arrives at the master: what the host sent is under ``data``.
    """
    what = data.get("data", {})
    if tag == PULL_TAG:
        return f"{data.get('id')}: pull {what['model']}: {what['status']}{_share(what)}"
    if tag == MEASURE_TAG:
        test = "measured" if what["done"] else f"{what['test']} ({what['tests_done']} of {what['tests']})"
        rate = f", {what['tokens_per_second']} tokens/s" if what["tokens_per_second"] else ""
        return f"{data.get('id')}: {what['instance']}: {what['model']}: {test}{rate}"
    return ""


def _share(event: Mapping[str, Any]) -> str:
    done, total = event.get("completed"), event.get("total")
    return f" {100 * done // total} %" if done and total else ""


@contextmanager
def shown(opts: Mapping[str, Any]) -> Iterator[None]:
    """Show the lines on the error stream while the body runs.

    opts
        The master's options. The listener is a process of its own: an event that is lost costs a line, nothing else.
    """
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    watcher = context.Process(target=_watch, args=(dict(opts), ready), daemon=True)
    watcher.start()
    ready.wait(timeout=5)
    try:
        yield
    finally:
        watcher.terminate()
        watcher.join(timeout=5)


def _watch(opts: dict[str, Any], ready: Any) -> None:
    import salt.utils.event

    with salt.utils.event.get_event("master", opts=opts, listen=True) as events:
        ready.set()
        while True:
            event = events.get_event(wait=5, full=True, auto_reconnect=True)
            text = line(event["tag"], event["data"]) if event else ""
            if text:
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()
