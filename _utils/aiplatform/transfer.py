"""Models on their way: how far a pull, a push or a making is, told to the log and the master while it goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

log = logging.getLogger(__name__)

TAG = "ai_platform/models/progress"
# At most so often; the end is told at once.
SECONDS = 2.0
# How many models come at once: Ollama (0.17, ``server/download.go``) looks once a second whether a layer is there, and
# compares the digest at the end, while the line is idle.
TRANSFERS = 2


def follow(
    operation: str,
    model: str,
    events: Iterable[Mapping[str, Any]],
    opts: Mapping[str, Any],
    functions: Mapping[str, Callable[..., Any]],
) -> dict[str, Any]:
    """Go through Ollama's events, telling of them; returns the last one, which is empty where there was none.

    operation, model
        ``pull``, ``push`` or ``create``, and of what.
    opts, functions
        The minion's options and Salt's execution functions; one without a master tells the log only.
    """
    told = 0.0
    event: dict[str, Any] = {}
    for event in map(dict, events):
        if time.monotonic() - told >= SECONDS or event.get("status") == "success":
            told = time.monotonic()
            data: dict[str, Any] = {"operation": operation, "model": model}
            data |= {key: event.get(key) for key in ("status", "completed", "total")}
            log.info("Models: %s", data)
            send(TAG, data, opts, functions)
    return event


def send(
    tag: str, data: Mapping[str, Any], opts: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]
) -> None:
    """Send an event to the master, where the minion has one."""
    if opts.get("file_client") != "local":
        functions["event.send"](tag, data)


def side_by_side(do: Callable[[str], Any], models: Iterable[str]) -> None:
    """Do something with each model, ``TRANSFERS`` of them at once; raises what the first of them raised that failed.

    Where one fails, those under way end, and no other begins.
    """
    failed = threading.Event()

    def one(model: str) -> None:
        if not failed.is_set():
            try:
                do(model)
            except Exception:  # whatever it was: no other begins; it is raised again, and told in the end
                failed.set()
                raise

    with ThreadPoolExecutor(TRANSFERS) as pool:
        # Salt's functions and settings are found by the context that they are called in.
        running = [pool.submit(copy_context().run, one, model) for model in models]
    for ended in running:
        ended.result()
