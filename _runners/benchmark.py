"""Measure models on the hosts that serve them, choose the best for the slots, and report it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiplatform import choice, measure_progress, outcome, services, settings, settle, tables
from aiplatform import report as reporting
from aiplatform import selection as rules
from aiplatform.errors import PlatformError


def run(models: list[str] | str | None = None, fresh: bool = False, test: bool = False) -> dict[str, Any]:
    """Pull and measure what has not been measured, then choose. The slots change when the models phase runs.

    models
        Only these (names with tags, a list or separated by commas); what is known of others is kept.
    fresh
        Measure again what has been measured under the same conditions.
    test
        Show what would be done and touch nothing.

    CLI Example:

    .. code-block:: bash

        salt-run benchmark.run
        salt-run benchmark.run models=llama3.1:8b,qwen2.5-coder:7b fresh=True
    """
    tables.hush()
    try:
        return _answer(_run(_names(models), bool(fresh), bool(test)))
    except PlatformError as err:
        return _refused(err)


def choose(test: bool = False) -> dict[str, Any]:
    """Choose the slots' models from all that has been measured, and write selection and report where that changed.

    test
        Show what would change and touch nothing.

    CLI Example:

    .. code-block:: bash

        salt-run benchmark.choose
    """
    tables.hush()
    try:
        return _answer(_choose(settings.load(__opts__), bool(test)))
    except PlatformError as err:
        return _refused(err)


def select(metrics: str) -> dict[str, Any]:
    """Return the selection that follows from a file of figures; asks no host and writes nothing.

    metrics
        The path of a JSON file: ``{"models": [{"model", "tokens_per_second", "coding_quality", "general_quality",
        "ttft_ms", "weights_digest" (may be left out)}]}``.

    CLI Example:

    .. code-block:: bash

        salt-run benchmark.select metrics=/tmp/metrics.json --out=json
    """
    tables.hush()
    try:
        pillar = settings.load(__opts__)
        chosen = rules.select(choice.read_metrics(Path(metrics)), pillar["benchmark"])
    except PlatformError as err:
        return _refused(err)
    return tables.answer(__opts__, chosen, _text(chosen, pillar))


def report() -> dict[str, Any]:
    """Show the latest report; where there is none, one is written from the selection.

    CLI Example:

    .. code-block:: bash

        salt-run benchmark.report
    """
    tables.hush()
    try:
        pillar = settings.load(__opts__)
        folder = settle.Places.of(__opts__, pillar).reports
        path = reporting.latest(folder) or settle.write_report(folder, pillar["selection"], pillar)
    except PlatformError as err:
        return _refused(err)
    text = path.read_text(encoding="utf-8")
    return tables.answer(__opts__, {"report": str(path), "text": text}, f"{text}\n{path}")


def _run(models: list[str], fresh: bool, test: bool) -> dict[str, Any]:
    hosts = list(services.hosts_of(settings.load(__opts__), "ai_server"))
    override = {"benchmark": {"fresh": fresh} | ({"models": models} if models else {})}
    with measure_progress.shown(__opts__):
        answers = __salt__["salt.execute"](
            hosts, "state.apply", arg=["benchmark"], kwarg={"pillar": override, "test": test}, tgt_type="list"
        )
    failures = [failure for host in hosts for failure in outcome.failures_of("benchmark", host, answers.get(host))]
    if failures:
        reasons = [f"{one.host}: {one.state}: {one.reason}" for one in failures]
        raise PlatformError("Measuring failed", where=", ".join(hosts), actual="; ".join(reasons))
    return _choose(settings.load(__opts__), test)


def _choose(pillar: dict[str, Any], test: bool) -> dict[str, Any]:
    hosts = list(services.hosts_of(pillar, "ai_server"))
    if test and _unmeasured(hosts):
        return {"changes": settle.LATER, "comment": "Would be chosen anew"}
    return settle.settle(pillar, _results(hosts), settle.Places.of(__opts__, pillar), test) | {"pillar": pillar}


def _unmeasured(hosts: list[str]) -> bool:
    """Return whether any host would still measure something; one that cannot say yet would."""
    # Outside of states a minion answers by the pillar it last got.
    __salt__["salt.execute"](hosts, "saltutil.refresh_pillar", kwarg={"wait": True}, tgt_type="list")
    plans = __salt__["salt.execute"](hosts, "benchmark.plan", tgt_type="list")
    missing = __salt__["salt.execute"](hosts, "benchmark.to_be_pulled", tgt_type="list")
    ready = [
        isinstance(plans.get(host), dict) and not plans[host]["measure"] and missing.get(host) == [] for host in hosts
    ]
    return not all(ready)


def _results(hosts: list[str]) -> dict[str, dict[str, Any]]:
    answers = __salt__["salt.execute"](hosts, "benchmark.results", tgt_type="list")
    bad = {host: answers.get(host, "no answer") for host in hosts if not isinstance(answers.get(host), dict)}
    if bad:
        raise PlatformError(
            "The measured figures cannot be had",
            where=", ".join(bad),
            expected="a mapping with models and skipped",
            actual="; ".join(str(text).strip().rpartition("\n")[2] for text in bad.values()),
            hint="is the ollama phase done on these hosts?",
        )
    return {host: answers[host] for host in hosts}


def _names(value: list[str] | str | None) -> list[str]:
    if not value:
        return []
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else [str(name) for name in value]


def _answer(data: dict[str, Any]) -> dict[str, Any]:
    pillar = data.pop("pillar", None)
    chosen = data.get("selection")
    text = data["comment"] + (f"\n\n{_text(chosen, pillar)}" if chosen and pillar else "")
    return tables.answer(__opts__, {"retcode": 0, **data}, text)


def _text(chosen: dict[str, Any], pillar: dict[str, Any]) -> str:
    slots = tables.table(("slot", "socket", "role", "model", "composite"), reporting.slot_rows(chosen, pillar))
    return f"{slots}\n\n{tables.table(('left out', 'why'), chosen['excluded'].items())}"


def _refused(err: PlatformError) -> dict[str, Any]:
    __context__["retcode"] = 1
    return tables.answer(__opts__, {"retcode": 1, "result": False, "comment": str(err)}, f"Refused: {err}")
