"""Steps with one line each: what, whether it was up to date, how long it took. One ``lab`` at a time."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

from lab.settings import CHECKOUT, LabError, folder

PARALLEL = 6
SIGNAL_SECONDS = 0.5


@dataclass(frozen=True)
class Step:
    """One thing the lab does.

    ``fresh`` returns why there is nothing to do, or None; ``do`` does it and returns what came of it; ``needs`` are
    the titles of the steps that come before.
    """

    title: str
    do: Callable[[], str]
    fresh: Callable[[], str | None] = lambda: None
    needs: tuple[str, ...] = ()


class Progress:
    """Writes the lines, also from several threads."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.started = time.monotonic()
        self._number = 0
        self._guard = threading.Lock()

    def run(self, step: Step) -> None:
        """Run one step, with its lines."""
        with self._guard:
            self._number += 1
            number = self._number
        begin = time.monotonic()
        try:
            result = step.fresh()
            word = "up to date"
            if result is None:
                self.line(number, step.title, "...", None)
                result = step.do()
                word = "done"
        except (LabError, OSError) as err:
            # The steps under way are waited for: what went wrong is said now.
            self.line(number, step.title, f"failed: {err}", time.monotonic() - begin)
            raise
        self.line(number, step.title, f"{word}: {result}" if result else word, time.monotonic() - begin)

    def line(self, number: int, title: str, text: str, seconds: float | None) -> None:
        """Write one line."""
        took = "" if seconds is None else f" ({elapsed(seconds)})"
        with self._guard:
            print(f"[{number:2}/{self.total}] {title}: {text}{took}", flush=True)


def elapsed(seconds: float) -> str:
    """Seconds as people read them.

    >>> elapsed(4.04), elapsed(71)
    ('4.0 s', '1 min 11 s')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def run_steps(steps: Sequence[Step]) -> float:
    """Run steps as soon as what they need is done, side by side where they can be; returns the seconds.

    Raises:
        LabError: of the first step that failed; those under way are waited for, and no further one starts.
    """
    progress = Progress(len(steps))
    with ThreadPoolExecutor(PARALLEL) as pool:
        errors = _run_all(steps, lambda step: pool.submit(progress.run, step))
    if errors:
        raise errors[0]
    return time.monotonic() - progress.started


def _run_all(steps: Sequence[Step], submit: Callable[[Step], Future[None]]) -> list[BaseException]:
    """Submit each step once its needs are met, until all are done or one failed; returns what failed."""
    waiting = list(steps)
    done: set[str] = set()
    running: dict[Future[None], str] = {}
    errors: list[BaseException] = []
    while running or (waiting and not errors):
        ready = [step for step in waiting if done.issuperset(step.needs)] if not errors else []
        waiting = [step for step in waiting if step not in ready]
        running |= {submit(step): step.title for step in ready}
        if not running:
            raise ValueError(f"steps that need what is not there: {[step.title for step in waiting]}")
        # Not for ever: a signal that another thread caught is handled when this one next runs.
        ended = wait(running, timeout=SIGNAL_SECONDS, return_when=FIRST_COMPLETED).done
        errors += [error for future in ended if (error := future.exception())]
        done |= {running.pop(future) for future in ended}
    return errors


@contextmanager
def lock(purpose: str) -> Iterator[None]:
    """Hold the lab's lock; the system drops it with the process, however that ends.

    Raises:
        LabError: another process holds it.
    """
    path = folder("lab") / "lock"
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise LabError(f"The lab is busy: {holder}. Wait for it to end, or stop it, then run this again.") from err
        stream.truncate(0)
        since = time.strftime("%H:%M:%S")
        stream.write(f"`lab {purpose}` of {CHECKOUT}, process {os.getpid()}, since {since}")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


def note(text: str) -> None:
    """A line to a person, apart from the results."""
    print(text, file=sys.stderr, flush=True)
