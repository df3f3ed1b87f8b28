"""A line on the terminal for each step of pulling and measuring models: by the hosts' events, or on the host itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from aiplatform import event_lines, measure, transfer

MEASURE_TAG = "ai_platform/benchmark/progress"


def line(tag: str, data: Mapping[str, Any]) -> str:
    """Return the line for one event; empty where it is about something else.

    tag, data
        The event as it arrives at the master: what the host sent is under ``data``.
    """
    what = data.get("data", {})
    if tag == transfer.TAG:
        return f"{data.get('id')}: {what['operation']} {what['model']}: {what['status']}{_share(what)}"
    if tag == MEASURE_TAG:
        test = "measured" if what["done"] else f"{what['test']} ({what['tests_done']} of {what['tests']})"
        rate = f", {what['tokens_per_second']} tokens/s" if what["tokens_per_second"] else ""
        left = f", {_duration(what['seconds_left'])} left" if what.get("seconds_left") else ""
        return f"{data.get('id')}: {what['instance']}: {what['model']}: {test}{rate}{left}"
    return ""


def _share(event: Mapping[str, Any]) -> str:
    done, total = event.get("completed"), event.get("total")
    return f" {100 * done // total} %" if done and total else ""


def _duration(seconds: float) -> str:
    """Return a time in the words of somebody who waits for it."""
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


class Pace:
    """How long a run will still take, by how long its tests have taken so far.

    A test counts as the bytes of its model, which are what it reads for each token.
    """

    def __init__(
        self, tasks: Mapping[str, measure.Task], tests: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the tasks by model, and the number of tests of each."""
        self.tests = tests
        self._clock, self._started = clock, clock()
        self._left = {model: (task, tests) for model, task in tasks.items()}
        self._done: dict[str, float] = {}

    def left(self, task: measure.Task, tests_done: int, done: bool) -> float | None:
        """Note how far a model is, and return the seconds that the run will still take; None at its beginning.

        tests_done
            Tests of this model that are made; those of an earlier run among them.
        done
            The model is measured to the end.
        """
        before = self._left.get(task.model, (task, self.tests))[1]
        after = 0 if done else self.tests - tests_done
        self._left[task.model] = (task, after)
        # The first message of a model that is gone on with tells of more than the one test that was made now.
        made = min(1, max(0, before - after)) if not done else 0
        self._done[task.instance] = self._done.get(task.instance, 0.0) + made * task.size
        spent = self._clock() - self._started
        waits = [self._of(instance, spent) for instance in {task.instance for task, _ in self._left.values()}]
        return round(max(wait for wait in waits if wait is not None), 1) if any(w is not None for w in waits) else None

    def _of(self, instance: str, spent: float) -> float | None:
        todo = sum(task.size * tests for task, tests in self._left.values() if task.instance == instance)
        done = self._done.get(instance)
        return spent / done * todo if done else None


def event(task: measure.Task, record: Mapping[str, Any], pace: Pace) -> dict[str, Any]:
    """Return what is told after each test of a model, and once more when it is measured.

    record
        What is measured so far.
    """
    samples, done = record["samples"], "measured_at" in record
    last = next(reversed(samples), None)
    return {
        "model": task.model,
        "instance": task.instance,
        "test": last,
        "tests_done": len(samples),
        "tests": pace.tests,
        "tokens_per_second": round(samples[last].get("tokens_per_second", 0.0), 1) if last else None,
        "seconds_left": pace.left(task, len(samples), done),
        "done": done,
    }


def show(host: str, data: Mapping[str, Any]) -> None:
    """Write the line of an event to the error stream, on a host that has no master to tell."""
    with suppress(OSError):  # a terminal that is gone is no reason to end what it was told of
        sys.stderr.write(f"{line(MEASURE_TAG, {'id': host, 'data': data})}\n")
        sys.stderr.flush()


@contextmanager
def shown(opts: Mapping[str, Any]) -> Iterator[None]:
    """Show the lines on the error stream while the body runs.

    opts
        The master's options.
    """
    with event_lines.shown(opts, lambda event: line(event["tag"], event["data"]) if event else ""):
        yield
