"""What an orchestration returned, as one row a phase and host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aiplatform.errors import PlatformError
from aiplatform.phases import MINIONS, STATE, Step
from aiplatform.tables import table

OK, CHANGED, WOULD_CHANGE, FAILED, NOT_RUN = "ok", "changed", "would change", "FAILED", "not run"


@dataclass(frozen=True)
class Failure:
    """Why a phase failed on a host: the state that failed, and what it said."""

    phase: str
    host: str
    state: str
    reason: str


@dataclass
class Row:
    """How one step went on one host (``master`` for a runner)."""

    phase: str
    step: str
    host: str
    result: str
    changed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the step did what it should."""
        return self.result not in (FAILED, NOT_RUN)


def states_of(answer: Any) -> list[dict[str, Any]]:
    """Return the states in a minion's answer to ``state.apply``; empty where it is no such answer."""
    return [state for state in answer.values() if isinstance(state, dict)] if isinstance(answer, Mapping) else []


def changed_ids(answer: Any) -> list[str]:
    """Return the ids of the states that changed something, or would."""
    return [str(state.get("__id__", state.get("name"))) for state in states_of(answer) if state.get("changes")]


def notices_of(answer: Any) -> list[str]:
    """Return what the states of a minion's answer want an operator to know."""
    return [str(text).strip() for state in states_of(answer) for text in state.get("warnings") or []]


def failures_of(phase: str, host: str, answer: Any) -> list[Failure]:
    """Return the failed states in a minion's answer; those that only waited for a failed one are left out.

    An answer that holds no states (the minion was down, its pillar was refused) is one failure without a state.
    """
    if not isinstance(answer, Mapping):
        return [Failure(phase, host, "", _refusal(host, answer))]
    failed = [state for state in states_of(answer) if state.get("result") is False]
    causes = [state for state in failed if state.get("__state_ran__", True)] or failed
    return [
        Failure(phase, host, str(state.get("__id__", state.get("name"))), str(state.get("comment", "")).strip())
        for state in causes
    ]


def _refusal(host: str, answer: Any) -> str:
    if answer is False or answer is None:
        return (
            f"minion {host} did not answer; expected: its salt-minion runs and reaches the master, and the master is "
            "not restarted meanwhile; the job may still be running there"
        )
    return "; ".join(str(line) for line in answer) if isinstance(answer, list) else str(answer)


def of_runner(name: str, answer: Any, test: bool) -> dict[str, Any]:
    """Return the answer of a runner that reports its changes as what a state returns.

    name
        The function.
    answer
        A mapping with ``changes``, ``comment``, and ``result`` or ``retcode``, each of which may be left out; or what
        Salt says of a runner that raised.
    test
        Whether it was a dry run.
    """
    if not isinstance(answer, dict):
        return {"name": name, "result": False, "changes": {}, "comment": _last_line(answer)}
    content = answer.get("data", answer) if "outputter" in answer else answer
    changes = content.get("changes", {})
    good = content.get("result", True) is not False and not content.get("retcode", 0)
    result = None if good and test and changes else good
    return {"name": name, "result": result, "changes": changes, "comment": str(content.get("comment", ""))}


def _last_line(answer: Any) -> str:
    """Return what a runner that raised had to say: the end of its traceback."""
    lines = [line for line in str(answer).splitlines() if line.strip()]
    return lines[-1] if str(answer).startswith("Exception occurred") and lines else str(answer).strip()


def rows(steps: Sequence[Step], results: Mapping[str, Any]) -> tuple[list[Row], list[Failure]]:
    """Return how each step went on each host, and every failure.

    steps
        The steps of the run.
    results
        The orchestration's own states by id, as ``by_id`` gives them.
    """
    found: list[Row] = []
    failures: list[Failure] = []
    for step in steps:
        state = results.get(step.id, {"result": False, "__state_ran__": False})
        for row, causes in _rows_of(step, state):
            found.append(row)
            failures += causes
    return found, failures


def in_order(steps: Sequence[Step], found: Iterable[Row]) -> list[Row]:
    """Return rows in the order of the steps; what is none of them, as the question whether all answer, comes first."""
    order = {step.id: number for number, step in enumerate(steps)}
    return sorted(found, key=lambda row: order.get(row.step, -1))


def by_id(orchestrated: Any) -> dict[str, Any]:
    """Return the states of ``state.orchestrate``'s answer by their id.

    Raises ``PlatformError`` with Salt's text where the orchestration did not even render.
    """
    data = orchestrated.get("data", orchestrated) if isinstance(orchestrated, Mapping) else orchestrated
    answers = list(data.values()) if isinstance(data, Mapping) else [data]
    for answer in answers:
        if not isinstance(answer, Mapping):
            text = "\n".join(map(str, answer)) if isinstance(answer, list) else str(answer)
            raise PlatformError("The orchestration did not start", where="orch.deploy", actual=text)
    return {str(state.get("__id__")): state for answer in answers for state in states_of(answer)}


def _rows_of(step: Step, state: Mapping[str, Any]) -> Iterator[tuple[Row, list[Failure]]]:
    seconds = round(float(state.get("duration") or 0) / 1000, 1)
    hosts = step.hosts if step.kind == STATE else ("master",)
    if not state.get("__state_ran__", True):
        for host in hosts:
            yield Row(step.phase, step.id, host, NOT_RUN), []
        return
    if step.kind != STATE:
        changed = sorted(map(str, state.get("changes", {})))
        result = _verdict(state.get("result"), changed)
        reasons = str(state.get("comment")).splitlines() if step.kind == MINIONS else [str(state.get("comment"))]
        causes = [Failure(step.phase, "master", step.name, reason) for reason in reasons if result == FAILED]
        yield Row(step.phase, step.id, "master", result, changed, seconds), causes
        return
    answers = state.get("changes", {}).get("ret", {})
    found = {host: failures_of(step.phase, host, answers.get(host, {})) for host in hosts}
    if state.get("result") is False and not any(found.values()):
        # No host answered, one answered without any state, or Salt refused the step as a whole.
        found = {host: [Failure(step.phase, host, "", str(state.get("comment", "")))] for host in hosts}
    for host in hosts:
        yield _host_row(step, host, answers.get(host, {}), found[host], seconds)


def _host_row(step: Step, host: str, answer: Any, causes: list[Failure], seconds: float) -> tuple[Row, list[Failure]]:
    pending = any(item.get("result") is None for item in states_of(answer))
    changed = changed_ids(answer)
    result = FAILED if causes else _verdict(None if pending else True, changed)
    return Row(step.phase, step.id, host, result, changed, seconds), causes


def _verdict(result: bool | None, changed: Sequence[str]) -> str:
    if result is False:
        return FAILED
    if result is None:
        return WOULD_CHANGE
    return CHANGED if changed else OK


def as_data(items: Sequence[Row | Failure]) -> list[dict[str, Any]]:
    """Return rows or failures as plain data."""
    return [asdict(item) for item in items]


def summary(data: Mapping[str, Any]) -> str:
    """Return the closing text of a deploy: a table of phases and hosts, the failures, URLs and slots.

    data
        The answer of ``ai_platform.deploy``.
    """
    phases = [
        (row["step"], row["host"], row["result"], len(row["changed"]) or "", row["seconds"]) for row in data["phases"]
    ]
    parts = [
        table(["phase", "host", "result", "changed", "seconds"], phases),
        "\n".join(_failure_text(failure) for failure in data["failures"]),
        table(["address", "who may enter"], [(site["url"], site["entry"]) for site in data["sites"]])
        or table(["service", "url"], sorted(data["urls"].items())),
        table(["slot", "instance", "kind", "model"], [tuple(slot.values()) for slot in data["slots"]]),
        _verdict_text(data),
    ]
    return "\n\n".join(part for part in parts if part)


def _failure_text(failure: Mapping[str, str]) -> str:
    state = f", state {failure['state']}" if failure["state"] else ""
    reason = failure["reason"].replace("\n", "\n    ")
    return f"FAILED: phase {failure['phase']}, host {failure['host']}{state}:\n    {reason}"


def _verdict_text(data: Mapping[str, Any]) -> str:
    changed = sum(len(row["changed"]) for row in data["phases"])
    what = "would change" if data["test"] else "changed"
    end = "The deploy failed; run it again to carry on from there." if data["retcode"] else "All phases went well."
    return f"{end} {changed} states {what}; {data['seconds']} s."
