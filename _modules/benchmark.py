"""Measure the models of this host, each on the Ollama instance that it would serve on."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from aiplatform import (
    choice,
    measure_better,
    measure_code,
    measure_host,
    measure_memory,
    measure_model,
    measure_progress,
    measure_run,
    ollama,
    scoring,
    settle,
    slots,
)
from aiplatform import measure as measuring
from aiplatform.errors import PlatformError

log = logging.getLogger(__name__)

SUITE = "salt://benchmark/suite/suite.yaml"
_RESULTS = "results.json"
_MEMORY = "memory.json"
# The model that pull_if_better has fetched and not decided on, with why it was fetched.
_TRIAL = "trial.json"


def wanted_models() -> list[str]:
    """Return the models that are pulled before anything is measured: baseline, candidates, and those named.

    CLI Example:

    .. code-block:: bash

        salt ai_server benchmark.wanted_models
    """
    return measuring.wanted(__pillar__["benchmark"])


def plan(models: list[str] | None = None, fresh: bool | None = None) -> dict[str, Any]:
    """Return what a run would measure, what it keeps, and what it leaves out and why. Asks no model anything.

    ``recommended`` are the models that ``pull_if_better`` would fetch, or has fetched on trial and not decided on, each
    with why: known when all else is measured. ``memory`` are the instances whose memory's speed is not known.

    models
        Only these; pillar ``benchmark:models`` where it is left out.
    fresh
        Measure again what has been measured; pillar ``benchmark:fresh`` where it is left out.

    CLI Example:

    .. code-block:: bash

        salt ai_server benchmark.plan
    """
    pillar, conditions = _pillar(models, fresh), _conditions()
    trial = _on_trial(pillar)
    found = _plan(pillar, conditions, trial)
    return {
        "measure": {task.model: task.instance for task in found.tasks},
        "keep": list(found.kept),
        "skip": dict(found.skipped),
        "recommended": {} if found.tasks else trial | _recommended(pillar, conditions),
        "memory": _unknown_memory(),
    }


def measure(models: list[str] | None = None, fresh: bool | None = None) -> dict[str, Any]:
    """Measure what has not been measured under these conditions, and return the new figures by model.

    Instances work side by side, each answers one request at a time. Whatever is loaded is unloaded before, and the
    warm-up units are restarted afterwards; where there is nothing to measure, nothing is touched. With pillar
    ``benchmark:pull_if_better`` recommended models are fetched, measured, and deleted again where they earn no slot;
    one with which an earlier run broke off comes first.

    models
        Only these; pillar ``benchmark:models`` where it is left out.
    fresh
        Measure again what has been measured; pillar ``benchmark:fresh`` where it is left out.

    CLI Example:

    .. code-block:: bash

        salt -t 86400 ai_server benchmark.measure models='[llama3.1:8b]' fresh=True
    """
    pillar = _pillar(models, fresh)
    _refuse_unexecutable(pillar["benchmark"])
    conditions, trial = _conditions(), _on_trial(pillar)
    found = _plan(pillar, conditions, trial)
    if not found.tasks and not trial and not _recommended(pillar, conditions):
        return {f"memory of {name}": memory(name) for name in _unknown_memory()}
    instances = sorted({slot["instance"] for slot in pillar["slots"].values()})
    try:
        for name in instances:
            __salt__["model_slots.unload_all"](name)
        figures = _measure(pillar, conditions, found.tasks) | _try_recommended(pillar, conditions, trial)
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
    return {"models": measuring.complete(_records(), __pillar__["benchmark"]), "skipped": named}


def memory(instance: str, fresh: bool = False) -> dict[str, Any]:
    """Return how fast an instance's CPUs read memory: ``gigabytes_per_second`` (10^9 bytes), ``cpus``, ``hardware``.

    It is measured in about a second where it is not known, or ``fresh`` asks for it; the best figure is kept, since
    whatever else the host does can only lower it. Returns ``{}`` where the instance's CPUs are not known.

    CLI Example:

    .. code-block:: bash

        salt ai_server benchmark.memory node1 fresh=True
    """
    known = _read(_MEMORY)
    here, row = _readers(instance), known.get(instance, {})
    same = row.items() >= here.items()
    if not here["cpus"]:
        return {}
    if fresh or not same:
        speed = measure_memory.bandwidth(here["cpus"])
        best = max(speed, row["gigabytes_per_second"]) if same else speed
        row = {**here, "gigabytes_per_second": round(best, 2)}
        _write(_MEMORY, {**known, instance: row})
    return row


def _readers(instance: str) -> dict[str, Any]:
    """Return what the speed of an instance's memory depends on."""
    return {"cpus": list(__salt__["numa.plan"]()[instance].get("physical") or ()), "hardware": hardware()}


def _unknown_memory() -> list[str]:
    known, wanted = _read(_MEMORY), {name: _readers(name) for name in __pillar__["ollama"]["instances"]}
    return [name for name, here in wanted.items() if here["cpus"] and not known.get(name, {}).items() >= here.items()]


def roofline(model: str, instance: str) -> dict[str, Any]:
    """Return what an instance's memory allows a model, as far as it has been measured; asks for no bandwidth itself.

    ``tokens_per_second`` is the most, from ``gigabytes_per_second`` and ``bytes_per_token``; ``note`` says what of the
    model is not read for every token. ``{}`` where the memory's speed, or the model's tensors, are not known.

    CLI Example:

    .. code-block:: bash

        salt ai_server benchmark.roofline llama3.1:8b node1
    """
    speed = _read(_MEMORY).get(instance, {})
    found = measure_memory.roofline(speed, _known_bytes_per_token(model, instance)) if speed else None
    return {**vars(found), "tokens_per_second": found.tokens_per_second} if found else {}


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


def execute(prompt: str, text: str) -> dict[str, Any]:
    """Run the code of an answer against a prompt's hidden tests; returns ``passed``, and ``why`` not.

    The code runs in a unit of systemd that has neither network nor files, and little time and memory.

    prompt
        A prompt of the suite that has tests, such as ``debug``.
    text
        The answer, with its code in a fenced block or alone.

    CLI Example:

    .. code-block:: bash

        salt ai_server benchmark.execute debug "$(cat answer.md)"
    """
    known = {name: row["tests"] for name, row in _suite()["prompts"].items() if "tests" in row}
    if prompt not in known:
        raise PlatformError("A prompt without hidden tests", expected=" or ".join(sorted(known)), actual=prompt)
    if why := measure_code.available():
        raise PlatformError("The code of answers cannot be run here", actual=why)
    return vars(measure_code.execute(known[prompt], text))


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


def _plan(
    pillar: dict[str, Any], conditions: dict[str, dict[str, Any]], without: Collection[str] = ()
) -> measuring.Plan:
    rows = [row for row in __salt__["model_slots.installed"]() if row["name"] not in without]
    return measuring.plan([measuring.Installed(**row) for row in rows], _known(), pillar, conditions)


def _known() -> dict[str, dict[str, Any]]:
    """Return the records by weights digest: this host's own, and those of a kept selection made on equal hardware."""
    selection = __pillar__.get("selection") or {}
    kept = {
        row["measured"]["weights_digest"]: {"model": name, **row["measured"]}
        for name, row in selection.get("all_metrics", {}).items()
        if row.get("measured", {}).get("weights_digest")
    }
    usable = {key: row for key, row in kept.items() if row.get("hardware") == hardware()}
    return {**usable, **_records()}


# -- what is kept -------------------------------------------------------------------------------------------------


def _records() -> dict[str, dict[str, Any]]:
    return _read(_RESULTS)


def _read(name: str) -> dict[str, dict[str, Any]]:
    path = Path(__pillar__["benchmark"]["state_dir"]) / name
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise PlatformError(
            "The results cannot be read", where=str(path), expected="JSON", actual=str(err), hint="remove the file"
        ) from err


def _write(name: str, content: dict[str, dict[str, Any]]) -> None:
    path = Path(__pillar__["benchmark"]["state_dir"]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, sort_keys=True), encoding="utf-8")
    draft.replace(path)


# -- the run ------------------------------------------------------------------------------------------------------


def _measure(
    pillar: dict[str, Any], conditions: dict[str, Any], tasks: Sequence[measuring.Task]
) -> dict[str, dict[str, Any]]:
    """Measure the tasks, keeping each answer as it comes, and return the new figures by model."""
    suite, settings, records = _suite(), pillar["benchmark"], _records()
    used = {slot["instance"] for slot in pillar["slots"].values()} if tasks else set()
    speeds = {name: memory(name, fresh=True) for name in sorted(used)}
    places = {name: _place(name, settings) for name in sorted(used)}
    # Here, since Salt's functions are not to be had in the instances' threads.
    sizes = {
        task.model: _bytes_per_token(task.model, task.instance) if speeds[task.instance] else (0, "") for task in tasks
    }

    def make_job(task: measuring.Task) -> measure_model.Job:
        here = conditions[task.instance]
        options = {key: here[key] for key in slots.LOAD_OPTIONS if here[key] is not None}
        roof = measure_memory.roofline(speeds[task.instance], sizes[task.model])
        return measure_model.Job(task, suite, settings, here, options, roofline=roof, **places[task.instance])

    pace = measure_progress.Pace({task.model: task for task in tasks}, _tests(suite, settings))

    def keep(task: measuring.Task, record: dict[str, Any]) -> None:
        records[task.weights_digest] = record
        _write(_RESULTS, records)
        _announce(task, record, pace)

    clients = {name: __salt__["model_slots.client"](name) for name in conditions}
    done = measure_run.Run(clients, make_job, keep).measure(tasks, records, pillar["slots"])
    return {model: measuring.figures(record, settings) for model, record in done.items()}


def _tests(suite: dict[str, Any], settings: dict[str, Any]) -> int:
    return (len(suite["prompts"]) + 1) * settings["repeats"]


def _unexecutable(settings: dict[str, Any]) -> str:
    """Return why the code of answers is not run; empty where it is."""
    return measure_code.available() if settings["execute_code"] else "benchmark:execute_code is false"


def _refuse_unexecutable(settings: dict[str, Any]) -> None:
    why = _unexecutable(settings)
    if settings["scoring"] == scoring.EXECUTION and why:
        raise PlatformError(
            "The code of answers cannot be run, and it is what the score is to come from",
            where="benchmark:scoring",
            expected="a host that systemd runs, and execute_code",
            actual=why,
            hint="set benchmark:scoring to markers",
        )


def _place(instance: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what looks at the instance's CPUs while it is measured, and what runs code on them."""
    cpus = list(__salt__["numa.plan"]()[instance].get("cpus") or ())
    unit = __pillar__["ollama"]["instances"][instance]["unit"]
    server = int(__salt__["service.show"](unit).get("MainPID") or 0)
    watch = measure_host.Watch(cpus, server, settings["disturbance"]) if cpus else None
    why = _unexecutable(settings)
    return {
        "watching": watch.over if watch else None,
        "execute": None if why else lambda tests, text: measure_code.execute(tests, text, cpus),
        "execution_note": why,
    }


def _bytes_per_token(model: str, instance: str) -> tuple[int, str]:
    return measure_memory.bytes_per_token(__salt__["model_slots.client"](instance).show(model, verbose=True))


def _known_bytes_per_token(model: str, instance: str) -> tuple[int, str]:
    """As the measurement noted it; else asked for, with all tensors, which costs Ollama half a second a model."""
    digest = __salt__["model_slots.client"](instance).digest(model)
    known = (_read(_RESULTS).get(digest) or {}).get("roofline")
    return (known["bytes_per_token"], known["note"]) if known else _bytes_per_token(model, instance)


# -- recommended models -------------------------------------------------------------------------------------------


def _recommended(pillar: dict[str, Any], conditions: dict[str, Any]) -> dict[str, str]:
    """Return the models that ``pull_if_better`` fetches now, each with why."""
    settings = pillar["benchmark"]
    if not settings["pull_if_better"]:
        return {}
    names = [row["name"] for row in __salt__["model_slots.installed"]()]
    return measure_better.wanted(_choice(pillar), names, _known(), settings, conditions)


def _choice(pillar: dict[str, Any]) -> dict[str, Any]:
    """Return what would be chosen of what this host knows."""
    return choice.choose(pillar.get("selection") or {}, {__opts__["id"]: results()}, pillar["benchmark"])


def _on_trial(pillar: dict[str, Any]) -> dict[str, str]:
    """Return the installed model that a run fetched and did not decide on, with why it was fetched."""
    noted = _read(_TRIAL)
    names = [row["name"] for row in __salt__["model_slots.installed"]()] if noted else []
    return measure_better.on_trial(noted, names, pillar)


def _try_recommended(
    pillar: dict[str, Any], conditions: dict[str, Any], trial: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Fetch one recommended model after the other while slots are not filled well; what earns none is deleted.

    trial
        What an earlier run has fetched: it is decided on first.
    """
    figures: dict[str, dict[str, Any]] = {}
    every = {**pillar, "benchmark": {**pillar["benchmark"], "models": [], "fresh": False}}
    for model in trial:
        figures |= _decide(model, every, conditions)
    while wanted := {name: why for name, why in _recommended(every, conditions).items() if name not in figures}:
        model, why = next(iter(wanted.items()))
        # Before it is there: a run that breaks off leaves no model that the next one would take for the operator's.
        _write(_TRIAL, {model: {"why": why}})
        __salt__["model_slots.pull"](model)
        figures |= _decide(model, every, conditions)
    return figures


def _decide(model: str, pillar: dict[str, Any], conditions: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Measure a model that was fetched on trial, and delete it where it earns no slot."""
    tasks = [
        task for task in _plan(pillar, conditions).tasks if ollama.normalise(task.model) == ollama.normalise(model)
    ]
    figures = {model: {}} | _measure(pillar, conditions, tasks)
    if not measure_better.earns(model, _choice(pillar)):
        __salt__["model_slots.client"](min(conditions)).delete(model)
        figures[model]["deleted"] = "it earned no slot"
    _write(_TRIAL, {})
    return figures


def _announce(task: measuring.Task, record: dict[str, Any], pace: measure_progress.Pace) -> None:
    """Tell how far the run is: the master, or who called this where there is none."""
    data = measure_progress.event(task, record, pace)
    log.info("Benchmark: %s", data)
    if __opts__.get("file_client") == "local":
        measure_progress.show(__opts__["id"], data)
    else:
        __salt__["event.send"](measure_progress.MEASURE_TAG, data)
