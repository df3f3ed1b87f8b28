"""Measure the models of this host, each on the Ollama instance that it would serve on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import yaml

from aiplatform import measure as measuring
from aiplatform import measure_run, ollama, scoring, settle, slots
from aiplatform.errors import PlatformError

log = logging.getLogger(__name__)

SUITE = "salt://benchmark/suite/suite.yaml"
PROGRESS = "ai_platform/benchmark/progress"


def wanted_models() -> list[str]:
    """Return the models that are pulled before anything is measured: baseline, candidates, and those named.

    CLI Example:

    .. code-block:: bash

        salt ai_server benchmark.wanted_models
    """
    settings = __pillar__["benchmark"]
    candidates = [row["name"] for row in settings["candidate_models"]]
    names = [*settings["baseline_models"], *candidates, *settings["models"]]
    return list({ollama.normalise(name): name for name in names}.values())


def plan(models: list[str] | None = None, fresh: bool | None = None) -> dict[str, Any]:
    """Return what a run would measure, what it keeps, and what it leaves out and why. Asks no model anything.

    models
        Only these; pillar ``benchmark:models`` where it is left out.
    fresh
        Measure again what has been measured; pillar ``benchmark:fresh`` where it is left out.

    CLI Example:

    .. code-block:: bash

        salt ai_server benchmark.plan
    """
    found = _plan(_pillar(models, fresh), _conditions())
    return {
        "measure": {task.model: task.instance for task in found.tasks},
        "keep": list(found.kept),
        "skip": dict(found.skipped),
    }


def measure(models: list[str] | None = None, fresh: bool | None = None) -> dict[str, Any]:
    """Measure what has not been measured under these conditions, and return the new figures by model.

    Instances work side by side, each answers one request at a time. Whatever is loaded is unloaded before, and the
    warm-up units are restarted afterwards; where there is nothing to measure, nothing is touched.

    models
        Only these; pillar ``benchmark:models`` where it is left out.
    fresh
        Measure again what has been measured; pillar ``benchmark:fresh`` where it is left out.

    CLI Example:

    .. code-block:: bash

        salt -t 86400 ai_server benchmark.measure models='[llama3.1:8b]' fresh=True
    """
    pillar = _pillar(models, fresh)
    conditions = _conditions()
    found = _plan(pillar, conditions)
    if not found.tasks:
        return {}
    instances = sorted({slot["instance"] for slot in pillar["slots"].values()})
    try:
        for name in instances:
            __salt__["model_slots.unload_all"](name)
        figures = _measure(pillar, conditions, found)
    finally:
        # Where measuring failed that is the error to be told, and this is only logged.
        cold = _warm_up(instances)
    if cold:
        raise PlatformError(
            "All is measured, but slots are not warm",
            actual="; ".join(cold),
            hint="run it again: the figures are kept; the models phase puts the slots right",
        )
    return figures


def _warm_up(instances: list[str]) -> list[str]:
    """Restart the warm-up of each instance, whatever becomes of the others; returns what went wrong."""
    cold = []
    for name in instances:
        try:
            __salt__["model_slots.warm_up"](name)
        except PlatformError as err:
            log.warning("%s", err)
            cold.append(str(err))
    return cold


def to_be_pulled() -> list[str]:
    """Return the wanted models that are not in the store yet.

    CLI Example:

    .. code-block:: bash

        salt ai_server benchmark.to_be_pulled
    """
    return __salt__["model_slots.missing"](wanted_models())


def results() -> dict[str, Any]:
    """Return ``models``, the figures of all that this host has measured to the end, and ``skipped``, {name: why}.

    CLI Example:

    .. code-block:: bash

        salt ai_server benchmark.results
    """
    installed = [measuring.Installed(**row) for row in __salt__["model_slots.installed"]()]
    skipped = measuring.distinct(installed, __pillar__)[1]
    named = {name: why for name, why in skipped.items() if why != measuring.ALIAS}
    return {"models": measuring.complete(_records()), "skipped": named}


def choose(test: bool = False) -> dict[str, Any]:
    """Choose from what this host has measured, and write selection and report: on a server that has no master.

    Returns the changes; ``test`` writes nothing.

    CLI Example:

    .. code-block:: bash

        salt-call --local benchmark.choose
    """
    if __opts__["file_client"] != "local":
        raise PlatformError(
            "The master chooses", expected="a server without a master", hint="salt-run benchmark.choose"
        )
    return settle.settle(__pillar__, {__opts__["id"]: results()}, settle.Places.of(__opts__, __pillar__), test)


def hardware() -> str:
    """Return in one line what the figures of this host depend on.

    CLI Example:

    .. code-block:: bash

        salt ai_server benchmark.hardware
    """
    gigabytes = round(__grains__["mem_total"] / 1024)
    return f"{__grains__['cpu_model']}, {__grains__['num_cpus']} CPUs, {gigabytes} GiB"


# -- what is known ------------------------------------------------------------------------------------------------


def _pillar(models: list[str] | str | None, fresh: bool | None) -> dict[str, Any]:
    settings = dict(__pillar__["benchmark"])
    if models is not None:
        settings["models"] = models.split(",") if isinstance(models, str) else list(models)
    if fresh is not None:
        settings["fresh"] = fresh
    untagged = [name for name in settings["models"] if ":" not in name.rpartition("/")[2]]
    if untagged:
        raise PlatformError("Names without a tag", where="models", expected="<name>:<tag>", actual=untagged)
    return {**__pillar__, "benchmark": settings}


def _suite() -> dict[str, Any]:
    text = __salt__["cp.get_file_str"](SUITE)
    if not text:
        raise PlatformError("The suite of prompts is not there", where=SUITE, hint="is the state tree complete?")
    return yaml.safe_load(text)


def _conditions() -> dict[str, dict[str, Any]]:
    """Return for each instance what makes two measurements comparable."""
    settings = __pillar__["benchmark"]
    threads = __salt__["model_slots.threads"]()
    suite = scoring.suite_hash(_suite(), settings)
    shared = {"suite": suite, "hardware": hardware(), "num_ctx": settings["num_ctx"]}
    found = {}
    for name in __pillar__["ollama"]["instances"]:
        version = __salt__["model_slots.client"](name).version()
        found[name] = {**shared, "ollama_version": version, "num_thread": threads.get(name)}
    return found


def _plan(pillar: dict[str, Any], conditions: dict[str, dict[str, Any]]) -> measuring.Plan:
    installed = [measuring.Installed(**row) for row in __salt__["model_slots.installed"]()]
    return measuring.plan(installed, _known(), pillar, conditions)


def _known() -> dict[str, dict[str, Any]]:
    """Return the records by weights digest: this host's own, and those of a kept selection made on equal hardware."""
    selection = __pillar__.get("selection") or {}
    kept = {
        row["measured"]["weights_digest"]: {"model": name, "kind": row["category"], **row["measured"]}
        for name, row in selection.get("all_metrics", {}).items()
        if row.get("measured", {}).get("weights_digest")
    }
    usable = {key: row for key, row in kept.items() if row.get("hardware") == hardware()}
    return {**usable, **_records()}


# -- what is kept -------------------------------------------------------------------------------------------------


def _path() -> Path:
    return Path(__pillar__["benchmark"]["state_dir"]) / "results.json"


def _records() -> dict[str, dict[str, Any]]:
    path = _path()
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise PlatformError(
            "The results cannot be read", where=str(path), expected="JSON", actual=str(err), hint="remove the file"
        ) from err


def _keep(records: dict[str, dict[str, Any]]) -> None:
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(records, indent=1, sort_keys=True), encoding="utf-8")
    draft.replace(path)


# -- the run ------------------------------------------------------------------------------------------------------


def _measure(pillar: dict[str, Any], conditions: dict[str, Any], found: measuring.Plan) -> dict[str, Any]:
    suite, records = _suite(), _records()
    tests = len(suite["prompts"]) + 1

    def make_job(task: measuring.Task) -> measuring.Job:
        here = conditions[task.instance]
        options = {key: here[key] for key in slots.LOAD_OPTIONS if here[key] is not None}
        return measuring.Job(task, suite, pillar["benchmark"], here, options)

    def keep(task: measuring.Task, record: dict[str, Any]) -> None:
        records[task.weights_digest] = record
        _keep(records)
        _announce(task, record, tests)

    clients = {name: __salt__["model_slots.client"](name) for name in conditions}
    run = measure_run.Run(clients, make_job, keep)
    done = run.measure(found.tasks, records, pillar["slots"])
    return {model: _figures(record) for model, record in done.items()}


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    keys = ("tokens_per_second", "ttft_ms", "coding_quality", "general_quality")
    figures = {key: round(record[key], 3) for key in keys}
    return {**figures, **{key: record[key] for key in ("kind", "instance", "failed") if key in record}}


def _announce(task: measuring.Task, record: dict[str, Any], tests: int) -> None:
    """Tell the master how far the run is."""
    samples = record["samples"]
    last = next(reversed(samples), None)
    data = {
        "model": task.model,
        "instance": task.instance,
        "test": last,
        "tests_done": len(samples),
        "tests": tests,
        "tokens_per_second": round(samples[last].get("tokens_per_second", 0.0), 1) if last else None,
        "done": "measured_at" in record,
    }
    log.info("Benchmark: %s", data)
    if __opts__.get("file_client") != "local":
        __salt__["event.send"](PROGRESS, data)
