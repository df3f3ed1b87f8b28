"""A line on the terminal for each phase and host as a deploy goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

from aiplatform import event_lines, look, measure_progress
from aiplatform.outcome import changed_ids, failures_of, notices_of, states_of
from aiplatform.phases import STATE, Step

# Seconds without news after which a line says what is being waited for.
QUIET = 20


class Lines:
    """Turns events of the master into lines of text."""

    def __init__(self, steps: Sequence[Step], started: float) -> None:
        self._phases = {(step.kind, step.name): step.phase for step in steps}
        self._started = started
        self._jobs: dict[str, float] = {}
        self._waiting: dict[tuple[str, str], float] = {}
        self._news: dict[str, str] = {}
        self._told = started

    def next(self, event: Mapping[str, Any] | None, now: float) -> str:
        """Return the line for an event, or about what is waited for where nothing was said for a while; else empty.

        event
            ``tag`` and ``data``; None where nothing happened.
        now
            The time in seconds, on the clock of ``started``.
        """
        line = self.of(event["tag"], event["data"], now) if event else ""
        quiet = now - self._told > QUIET
        if not line and quiet:
            line = self.waiting(now)
        if line or quiet:
            self._told = now
        return line

    def of(self, tag: str, data: Mapping[str, Any], now: float) -> str:
        """Return the line for one event; empty where it says nothing about this deploy.

        tag, data
            The event.
        now
            The time in seconds, on the clock of ``started``.
        """
        if news := measure_progress.line(tag, data):
            self._news[str(data.get("id"))] = news
        phase = self._phase(data)
        if not phase:
            return ""
        if fnmatch(tag, "salt/job/*/new"):
            return self._begun(phase, data.get("minions", []), now)
        if fnmatch(tag, "salt/run/*/new"):
            return self._begun(phase, ["master"], now)
        if fnmatch(tag, "salt/job/*/ret/*"):
            return self._line(phase, str(data["id"]), self._states(phase, data), now)
        if fnmatch(tag, "salt/run/*/ret"):
            return self._line(phase, "master", "done" if data.get("success") else "ended", now)
        return ""

    def waiting(self, now: float) -> str:
        """Return a line about what the deploy waits for; empty where that is nothing.

        With it comes the latest that each host has told of its pulling and measuring since the line before.
        """
        names = ", ".join(f"{phase} on {host}" for phase, host in self._waiting)
        told = "; ".join([names, *self._news.values()])
        self._news.clear()
        return f"{self._clock(now)} still at work: {told}" if names else ""

    def _phase(self, data: Mapping[str, Any]) -> str:
        function = str(data.get("fun", ""))
        if function.startswith("runner."):
            return self._phases.get(("runner", function.removeprefix("runner.")), "")
        if function == look.FUNCTION:
            return look.NAME
        arguments = data.get("fun_args") or data.get("arg") or [""]
        return self._phases.get((STATE, str(arguments[0])), "") if function == "state.sls" else ""

    def _states(self, phase: str, data: Mapping[str, Any]) -> str:
        answer = data.get("return")
        if phase == look.NAME:
            return look.line(answer)
        if failures := failures_of(phase, str(data["id"]), answer):
            first = next(iter(failures[0].reason.splitlines()), "no reason given")
            return f"FAILED: {failures[0].state or 'no state'}: {first}"
        notices = "".join(f"\n    NOTE: {text}" for text in notices_of(answer))
        return f"{len(states_of(answer))} states, {len(changed_ids(answer))} changed{notices}"

    def _begun(self, phase: str, hosts: Sequence[str], now: float) -> str:
        self._waiting |= {(phase, host): now for host in hosts}
        return f"{self._clock(now)} {phase:<12} begins on {', '.join(hosts)}" if hosts else ""

    def _line(self, phase: str, host: str, text: str, now: float) -> str:
        began = self._waiting.pop((phase, host), now)
        return f"{self._clock(now)} {phase:<12} {host:<16} {now - began:6.1f} s  {text}"

    def _clock(self, now: float) -> str:
        seconds = int(now - self._started)
        return f"[{seconds // 60:3d}:{seconds % 60:02d}]"


@contextmanager
def shown(opts: Mapping[str, Any], steps: Sequence[Step]) -> Iterator[None]:
    """Show progress on the error stream while the body runs.

    opts
        The master's options.
    steps
        The steps of the run.
    """
    lines = Lines(steps, time.monotonic())
    with event_lines.shown(opts, lambda event: lines.next(event, time.monotonic())):
        yield
