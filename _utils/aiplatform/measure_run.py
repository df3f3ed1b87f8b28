"""A run over many models: instances side by side, one request at a time on each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from aiplatform import measure as measuring
from aiplatform import measure_model
from aiplatform.errors import PlatformError
from aiplatform.measure_answer import Instance

Record = dict[str, Any]
Keep = Callable[[measuring.Task, Record], None]


@dataclass(frozen=True)
class _Message:
    """What a measuring thread hands over: a record, the end of its work, or what stopped it."""

    task: measuring.Task | None = None
    record: Mapping[str, Any] | None = None
    done: bool = False
    error: Exception | None = None


class Run:
    """One thread an instance measures; the thread that calls ``measure`` alone keeps what they hand over."""

    def __init__(
        self,
        clients: Mapping[str, Instance],
        make_job: Callable[[measuring.Task], measure_model.Job],
        keep: Keep,
    ) -> None:
        """Take a client for each instance, what makes a job of a task, and what stores a record."""
        self._clients = clients
        self._make_job = make_job
        self._keep = keep
        self._messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._stop = threading.Event()

    def measure(
        self,
        tasks: Sequence[measuring.Task],
        records: Mapping[str, Record],
        slots: Mapping[Any, Mapping[str, Any]],
    ) -> dict[str, Record]:
        """Measure the tasks and return ``{model: record}``.

        records
            What an earlier run left, by weights digest.
        slots
            Pillar ``slots``. A model that turns out to be of the kind of another instance is measured there again.

        Raises what stopped one of the instances, when the others have ended, too: each at its next prompt.
        """
        done = dict(self._side_by_side(tasks, records))
        moved = [again for task in tasks if (again := measuring.elsewhere(done[task.model], task, slots))]
        return done | dict(self._side_by_side(moved, {}))

    def _side_by_side(
        self, tasks: Sequence[measuring.Task], records: Mapping[str, Record]
    ) -> Iterator[tuple[str, Record]]:
        queued: dict[str, list[tuple[measuring.Task, Record | None]]] = {}
        for task in tasks:
            queued.setdefault(task.instance, []).append((task, records.get(task.weights_digest)))
        threads = [
            threading.Thread(target=self._work, args=work, name=f"benchmark-{work[0]}", daemon=True)
            for work in queued.items()
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._collect(len(threads))
        except BaseException:
            self._stop.set()
            # Whoever is told of the failure loads the slots again: by then no model may be under measurement.
            for thread in threads:
                thread.join()
            raise

    def _work(self, instance: str, queued: Iterable[tuple[measuring.Task, Record | None]]) -> None:
        try:
            for task, record in queued:
                self._go_on()
                job = replace(self._make_job(task), go_on=self._go_on)
                measured = measure_model.run(self._clients[instance], job, record, self._hand_over(task))
                self._messages.put(_Message(task, measured, done=True))
            self._messages.put(_Message())
        except Exception as err:  # noqa: BLE001 - whatever it is, the thread that waits must learn of it, and raises it
            self._messages.put(_Message(error=err))

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise PlatformError("The run was given up")

    def _hand_over(self, task: measuring.Task) -> Callable[[Mapping[str, Any]], None]:
        def hand_over(record: Mapping[str, Any]) -> None:
            # A copy: this thread goes on filling its own.
            self._messages.put(_Message(task, {**record, "samples": dict(record["samples"])}))

        return hand_over

    def _collect(self, working: int) -> Iterator[tuple[str, Record]]:
        while working:
            message = self._messages.get()
            if message.error:
                raise message.error
            if message.task is None or message.record is None:
                working -= 1
                continue
            record = dict(message.record)
            if message.done:
                record["measured_at"] = datetime.now(UTC).isoformat(timespec="seconds")
            self._keep(message.task, record)
            if message.done:
                yield message.task.model, record
