"""Lines on the terminal about the master's events, while a command of the master waits for its hosts."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiplatform import deploy


@contextmanager
def shown(opts: Mapping[str, Any], line: Callable[[Mapping[str, Any] | None], str]) -> Iterator[None]:
    """Show lines on the error stream while the body runs.

    A process of its own listens to the events, so that the body forks from a process without threads, and so that a
    lost event costs a line and nothing else. It ends with the process of the body, also where that is killed.

    opts
        The master's options.
    line
        Returns the line for an event (``tag`` and ``data``), and about once a second for None; empty to say nothing.
    """
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    watcher = context.Process(target=_watch, args=(dict(opts), line, ready, os.getpid()), daemon=True)
    watcher.start()
    ready.wait(timeout=5)
    try:
        yield
    finally:
        watcher.terminate()
        watcher.join(timeout=5)


def _watch(opts: dict[str, Any], line: Callable[[Mapping[str, Any] | None], str], ready: Any, parent: int) -> None:
    import salt.utils.event

    deploy.forget_locks()
    with salt.utils.event.get_event("master", opts=opts, listen=True) as events:
        ready.set()
        # Nobody ends this process where its parent was killed: it has another one then.
        while os.getppid() == parent:
            text = line(events.get_event(wait=1, full=True, auto_reconnect=True))
            if text:
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()
