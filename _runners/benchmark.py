"""Measure models on the hosts that serve them, choose the best for the slots, and report it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiplatform import (
    choice,
    measure_progress,
    outcome,
    report_files,
    report_text,
    schema,
    services,
    settings,
    settle,
    tables,
)
from aiplatform import history as histories
from aiplatform import report as reporting
from aiplatform import selection as rules
from aiplatform.errors import PlatformError
from aiplatform.ollama import normalise


def run(
    models: list[str] | str | None = None, fresh: bool = False, test: bool = False, **overrides: Any
) -> dict[str, Any]:
    """Pull and measure what has not been measured, then choose. The slots change when the models phase runs.

    models
        Only these (names with tags, a list or separated by commas); what is known of others is kept.
    fresh
        Measure again what has been measured under the same conditions.
    test
        Show what would be done and touch nothing.
    overrides
        Any other key of pillar ``benchmark``, for this run alone: both for measuring and for choosing. The next choice
        is made by the pillar again. What the schema does not allow is refused.

    CLI Example:

    .. code-block:: bash

        salt-run benchmark.run
        salt-run benchmark.run models=llama3.1:8b,qwen2.5-coder:7b fresh=True
        salt-run benchmark.run thresholds='{min_tokens_per_sec: 8}' large_timeout=1800
    """
    tables.hush()
    try:
        wanted = {key: value for key, value in overrides.items() if not key.startswith("__")}
        return _answer(_run(_names(models), bool(fresh), bool(test), wanted))
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


def report(run: str | None = None) -> dict[str, Any]:
    """Show the report of a run; where there is none, one is written from the selection.

    run
        The time of the run, such as ``20260102T030405``; the latest where it is left out.

    Returns the paths of its pages, ``report`` (Markdown) and ``html``, and ``data``, what they are made of.

    CLI Example:

    .. code-block:: bash

        salt-run benchmark.report
        salt-run benchmark.report 20260102T030405 --out=json
    """
    tables.hush()
    try:
        pillar = settings.load(__opts__)
        places = settle.Places.of(__opts__, pillar)
        if run is None:
            path = report_files.latest(places.reports) or settle.write_report(places, pillar["selection"], pillar)
        else:
            path = report_files.find(places.reports, str(run))
        report_files.ensure_pages(path, places.state_tree)
        made = report_files.read(path)
    except PlatformError as err:
        return _refused(err)
    pages = {"report": str(path.with_suffix(".md")), "html": str(path.with_suffix(".html"))}
    return tables.answer(__opts__, {**pages, "data": made}, f"{reporting.markdown(made)}\n{pages['html']}")


def history(model: str | None = None) -> dict[str, Any]:
    """Show what each model measured from run to run, and whether it moved by more than noise.

    model
        Only this one.

    Returns ``{model: {"points", "largest_steps"}}``, oldest point first. Figures: tokens per second, milliseconds,
    qualities and composite from 0 to 1. ``drift`` of a point is what lies beyond pillar ``benchmark:noise``.

    CLI Example:

    .. code-block:: bash

        salt-run benchmark.history
        salt-run benchmark.history llama3.1:8b --out=json
    """
    tables.hush()
    try:
        pillar = settings.load(__opts__)
        lines = histories.points(report_files.earlier(settle.Places.of(__opts__, pillar).reports))
        if model is not None:
            lines = {_known_model(model, lines): lines[_known_model(model, lines)]}
    except PlatformError as err:
        return _refused(err)
    noise = pillar["benchmark"]["noise"]
    found = {name: histories.with_drift(line, noise) for name, line in lines.items()}
    data = {name: {"points": line, "largest_steps": histories.largest_steps(line)} for name, line in found.items()}
    return tables.answer(__opts__, data, report_text.history(found, noise))


def compare(old: str | None = None, new: str | None = None) -> dict[str, Any]:
    """Show what differs between two runs: figures, with what is more than noise; slots, settings, and other weights.

    old, new
        The times of the runs, such as ``20260102T030405``; the last two where they are left out.

    CLI Example:

    .. code-block:: bash

        salt-run benchmark.compare
        salt-run benchmark.compare 20260102T030405 20260109T030405 --out=json
    """
    tables.hush()
    try:
        folder = settle.Places.of(__opts__, settings.load(__opts__)).reports
        found = histories.compare(*(report_files.read(path) for path in _pair(folder, old, new)))
    except PlatformError as err:
        return _refused(err)
    return tables.answer(__opts__, found, report_text.compared(found))


def _known_model(model: str, lines: dict[str, Any]) -> str:
    names = {normalise(name): name for name in lines}
    if normalise(model) not in names:
        raise PlatformError(
            "No run has measured this model", where="model", expected=schema.one_of(model, lines), actual=model
        )
    return names[normalise(model)]


def _pair(folder: Path, old: str | None, new: str | None) -> list[Path]:
    if old is not None and new is not None:
        return [report_files.find(folder, str(name)) for name in (old, new)]
    known = report_files.runs(folder)
    if old is not None or len(known) < 2:
        raise PlatformError(
            "Two runs are needed to compare",
            where=str(folder),
            expected="two times, or none and two runs that are kept",
            actual=f"{len(known)} kept: {', '.join(path.stem for path in known) or 'none'}",
            hint="salt-run benchmark.run fresh=True",
        )
    return known[-2:]


def _run(models: list[str], fresh: bool, test: bool, overrides: dict[str, Any]) -> dict[str, Any]:
    pillar = _overridden(settings.load(__opts__), overrides)
    hosts = list(services.hosts_of(pillar, "ai_server"))
    override = {"benchmark": {**overrides, "fresh": fresh} | ({"models": models} if models else {})}
    with measure_progress.shown(__opts__):
        answers = __salt__["salt.execute"](
            hosts, "state.apply", arg=["benchmark"], kwarg={"pillar": override, "test": test}, tgt_type="list"
        )
    failures = [failure for host in hosts for failure in outcome.failures_of("benchmark", host, answers.get(host))]
    if failures:
        reasons = [f"{one.host}: {one.state}: {one.reason}" for one in failures]
        raise PlatformError("Measuring failed", where=", ".join(hosts), actual="; ".join(reasons))
    return _choose(pillar, test)


def _overridden(pillar: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the pillar with other values below ``benchmark``.

    Raises ``PillarError`` where they are not what the schema allows.
    """
    described = settings.schemas(Path(__opts__["file_roots"]["base"][0]))["benchmark"]
    benchmark = settings.merge(pillar["benchmark"], overrides, described)
    if problems := schema.against_schema("benchmark", benchmark, described):
        raise settings.PillarError([str(problem) for problem in problems])
    return {**pillar, "benchmark": benchmark}


def _choose(pillar: dict[str, Any], test: bool) -> dict[str, Any]:
    hosts = list(services.hosts_of(pillar, "ai_server"))
    answers = _answers(hosts, test)
    if test and not all(map(_measured, answers.values())):
        return {"changes": settle.LATER, "comment": "Would be chosen anew"}
    chosen = settle.settle(pillar, _results(answers), settle.Places.of(__opts__, pillar), test)
    if chosen["selection"] != pillar["selection"] and not test:
        _refresh_pillar(hosts)
    return chosen | {"pillar": pillar}


def _refresh_pillar(hosts: list[str]) -> None:
    """Have the hosts fetch their pillar: outside of states a minion answers by the one it last got."""
    __salt__["salt.execute"](hosts, "saltutil.refresh_pillar", kwarg={"wait": True}, tgt_type="list")


def _answers(hosts: list[str], test: bool) -> dict[str, Any]:
    """Return what each host has measured and, in a dry run, would: ``{host: {function: answer}}``, or a text."""
    functions = ["benchmark.results"]
    if test:
        _refresh_pillar(hosts)
        functions += ["benchmark.plan", "benchmark.to_be_pulled"]
    # One job: each costs a round trip.
    found = __salt__["salt.execute"](hosts, functions, [[] for _ in functions], tgt_type="list")
    return {host: found.get(host, "no answer") for host in hosts}


def _measured(answer: Any) -> bool:
    """Return whether a host has nothing left to measure; one that cannot say yet has."""
    plan = answer.get("benchmark.plan") if isinstance(answer, dict) else None
    return isinstance(plan, dict) and not plan["measure"] and answer.get("benchmark.to_be_pulled") == []


def _results(answers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {
        host: answer.get("benchmark.results", "no answer") if isinstance(answer, dict) else answer
        for host, answer in answers.items()
    }
    bad = {host: result for host, result in found.items() if not isinstance(result, dict)}
    if bad:
        raise PlatformError(
            "The measured figures cannot be had",
            where=", ".join(bad),
            expected="a mapping with models and skipped",
            actual="; ".join(str(text).strip().rpartition("\n")[2] for text in bad.values()),
            hint="is the ollama phase done on these hosts?",
        )
    return found


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
