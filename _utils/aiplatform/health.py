"""How the platform is, as the master sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import requests

from aiplatform import reach, slot_status, slots
from aiplatform.checks import Finding
from aiplatform.services import Endpoint, endpoints, expand
from aiplatform.tables import table

TIMEOUT = 5.0


def probe(endpoint: Endpoint, trust: str) -> dict[str, Any]:
    """Ask a service how it is: ``service``, ``host``, ``url``, ``ok`` and ``answer``.

    trust
        The file with the authority that signs the platform's own certificates.
    """
    ok, answer = _asked(endpoint, trust)
    return {"service": endpoint.service, "host": endpoint.host, "url": endpoint.url, "ok": ok, "answer": answer}


def _asked(endpoint: Endpoint, trust: str) -> tuple[bool, str]:
    if endpoint.health is None or endpoint.scheme not in ("http", "https"):
        answer = reach.connect(endpoint.address, endpoint.port, TIMEOUT)
        return answer == reach.ANSWERED, answer
    session = requests.Session()
    # A proxy for the outside world must not come between the master and its own services.
    session.trust_env = False
    try:
        reply = session.get(f"{endpoint.url}{endpoint.health}", timeout=TIMEOUT, verify=trust or True)
    except (requests.RequestException, OSError) as err:
        return False, type(err).__name__
    return reply.status_code == requests.codes.ok, f"HTTP {reply.status_code}"


def seen_by_master(settings: Mapping[str, Any]) -> list[Endpoint]:
    """Return the services that the table lets the master reach."""
    rows = expand(settings)
    return [end for end in endpoints(settings) if {"master", "any"} & set(rows[end.service]["reach"])]


def chosen_slots(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each slot with the model it should hold; an empty text where nothing fills it."""
    return [
        {
            "slot": number,
            "instance": slot["instance"],
            "kind": slot["kind"],
            "model": slots.chosen_model(int(number), slot, settings["selection"]) or "",
        }
        for number, slot in sorted(settings["slots"].items(), key=lambda item: int(item[0]))
    ]


def absent(hosts: Iterable[str], answers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a failed check for each host that gave no list of checks, with what it said instead."""
    return [
        Finding(
            "the minion makes its checks", ok=False, expected="a list of checks", actual=_instead(host, answers)
        ).on(host)
        for host in hosts
        if not isinstance(answers.get(host), list)
    ]


def _instead(host: str, answers: Mapping[str, Any]) -> str:
    return str(answers[host]) if host in answers else "no answer: is salt-minion running there?"


def slot_rows(hosts: Iterable[str], answers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the slots of all hosts; for a host that gave no list of them, a row that says what it gave instead."""
    rows: list[dict[str, Any]] = []
    for host in hosts:
        if isinstance(answers.get(host), list):
            rows += [{"host": host} | row for row in answers[host]]
        else:
            reason = (_instead(host, answers).strip().splitlines() or ["an empty answer"])[-1]
            unknown = {"name": "unknown", "instance": "unknown", "model": reason, "loaded": False, "context": None}
            rows.append({"host": host} | unknown)
    return rows


def latest_report(folder: Path) -> Finding:
    """There is a report of the benchmark's latest run."""
    found = sorted(folder.glob("*.md"), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    actual = found[-1].name if found else "none"
    return Finding(f"report in {folder}", bool(found), "a Markdown report", actual, "salt-run benchmark.run")


def status_text(data: Mapping[str, Any]) -> str:
    """Return the answer of ``ai_platform.status`` as tables."""
    hosts = [(name, "up" if up else "DOWN") for name, up in data["hosts"].items()]
    seen = [
        (row["service"], row["host"], row["url"], "ok" if row["ok"] else "FAILED", row["answer"])
        for row in data["services"]
    ]
    parts = [
        table(["host", "state"], hosts),
        table(["service", "host", "url", "state", "answer"], seen),
        table(*slot_status.as_text(data["slots"])),
    ]
    return "\n\n".join(part for part in parts if part)


def verify_text(data: Mapping[str, Any]) -> str:
    """Return the answer of ``ai_platform.verify`` as a table, what failed last and in full."""
    rows = [
        (row["host"], row["check"], "ok" if row["ok"] else "FAILED", row["expected"], row["actual"])
        for row in sorted(data["checks"], key=lambda row: not row["ok"])
    ]
    failed = [row for row in data["checks"] if not row["ok"]]
    hints = "\n".join(f"{row['host']}: {row['check']}: {row['hint']}" for row in failed if row["hint"])
    closing = f"{len(rows) - len(failed)} of {len(rows)} checks passed."
    return "\n\n".join(
        part for part in (table(["host", "check", "result", "expected", "actual"], rows), hints, closing) if part
    )
