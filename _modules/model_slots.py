"""The slots of this host: which model each holds, under which names, and whether it is loaded."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

from aiplatform import instances, manifests, ollama, slots
from aiplatform.errors import PlatformError
from aiplatform.serving import Serving
from aiplatform.store import Store

log = logging.getLogger(__name__)

PROGRESS = "ai_platform/models/progress"
PROGRESS_SECONDS = 2.0
PULL_ATTEMPTS = 3


def client(instance: str) -> ollama.Client:
    """Return a client of one of this host's instances (for other modules, not for the command line).

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.client node1
    """
    return ollama.Client(instances.base_url(__pillar__, instance))


def threads() -> dict[str, int]:
    """Return each instance's number of threads, by its NUMA plan.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.threads
    """
    return {name: binding["num_thread"] for name, binding in __salt__["numa.plan"]().items()}


def table() -> list[dict[str, Any]]:
    """Return what is to be resident: name, slot, kind, instance, model, load options and aliases of each.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.table
    """
    return [_row(resident) for resident in _table().residents]


def status() -> list[dict[str, Any]]:
    """Return the table with what is the case: ``loaded``, ``digest`` of the weights, ``context`` and ``size`` (bytes).

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.status
    """
    store, table = _store(), _current_table()
    rows = []
    for resident in table.residents:
        digest = store.weights(resident.model)
        moved = store.weights(resident.name) != digest
        runner = {} if moved else _serving(resident.instance, store, table).runner(resident) or {}
        facts = {"context": runner.get("context_length"), "size": runner.get("size")}
        rows.append({**_row(resident), "digest": digest, "loaded": bool(runner), **facts})
    return rows


def foreign(instance: str) -> list[str]:
    """Return the names of what an instance has loaded without need: weights that none of its own names stands for.

    A model that is called by its own name on the wrong instance is one. Embedding models are not listed.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.foreign node1
    """
    return _serving(instance, table=_current_table()).foreign()


# -- the store ----------------------------------------------------------------------------------------------------


def installed() -> list[dict[str, Any]]:
    """Return the store's models: name, size in bytes, digest of the weights, and whether they answer prompts.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.installed
    """
    store = _store()
    rows = []
    for name, tag in store.tags.items():
        about = store.about(name) or {}
        facts = {"weights_digest": about["weights"], "answers": about["answers"]}
        rows.append({"name": tag["name"], "size": tag["size"], **facts})
    return rows


def missing(models: list[str]) -> list[str]:
    """Return which of these models are not in the store; where no instance answers, its files are looked at.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.missing '[llama3.1:8b]'
    """
    try:
        return _store().missing(models)
    except ollama.InstanceDown:
        folder = Path(instances.models_dir(__pillar__))
        return [model for model in models if not manifests.path(folder, model).is_file()]


def pull(model: str) -> bool:
    """Fetch a model, telling the master how far it is; a pull that broke off before carries on.

    CLI Example:

    .. code-block:: bash

        salt -t 86400 ai_server model_slots.pull llama3.1:8b
    """
    if ":" not in model.rpartition("/")[2]:
        raise PlatformError("A name without a tag", expected=f"a name such as {model}:latest", actual=model)
    insecure = model.split("/", 1)[0] in __pillar__["models"]["insecure_registries"]
    source = f"http://{model}" if insecure else model
    api = client(min(__pillar__["ollama"]["instances"]))
    for attempt in range(1, PULL_ATTEMPTS + 1):
        try:
            _follow(model, api.pull(source, insecure=insecure))
        except ollama.ModelNotFound:
            raise
        except ollama.OllamaError as err:
            if attempt == PULL_ATTEMPTS:
                raise
            log.warning("Pull of %s broke off (attempt %d of %d): %s", model, attempt, PULL_ATTEMPTS, err)
        else:
            return True
    return False


def _follow(model: str, events: Any) -> None:
    told = 0.0
    for event in events:
        if time.monotonic() - told >= PROGRESS_SECONDS or event["status"] == "success":
            told = time.monotonic()
            data = {"model": model, **{key: event.get(key) for key in ("status", "completed", "total")}}
            log.info("Pull: %s", data)
            if __opts__.get("file_client") != "local":
                __salt__["event.send"](PROGRESS, data)


# -- an instance's residents --------------------------------------------------------------------------------------


def differences(instance: str) -> dict[str, Any]:
    """Return how the instance's names and loaded models differ from the table, as changes of a state.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.differences node1
    """
    serving = _serving(instance)
    try:
        _refuse_shared_weights()
        _refuse_crowded_nodes()
        return serving.differences()
    except ollama.InstanceDown:
        return serving.everything()


def converge(instance: str) -> bool:
    """Make the instance's names and loaded models those of the table.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.converge node1
    """
    _serving(instance).converge()
    return True


def unload_all(instance: str) -> bool:
    """Unload everything that an instance has loaded.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.unload_all node1
    """
    _serving(instance).unload_all()
    return True


def warm_up(instance: str) -> bool:
    """Restart the warm-up unit of an instance; False where there is none yet.

    Raises ``PlatformError`` naming the unit where it fails.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.warm_up node1
    """
    unit = slots.warmup_unit(__pillar__["ollama"]["instances"][instance]["unit"])
    if not __salt__["service.available"](unit):
        return False
    try:
        why = "" if __salt__["service.restart"](unit) else "it did not start"
    except CommandExecutionError as err:
        why = str(err)
    if why:
        raise PlatformError(
            "The warm-up failed",
            where=unit,
            expected="the unit loads the models that its instance serves, and ends well",
            actual=why,
            hint=f"systemctl status {unit}; journalctl -u {unit}",
        )
    return True


def warmup_settings(instance: str) -> dict[str, Any]:
    """Return the content of the warm-up's settings file; of a table that is refused, only why.

    The states that need it ask for it while they are compiled, where an error would hide the one that is told by the
    state that comes first.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.warmup_settings node1
    """
    settings = __pillar__["models"]
    try:
        residents = _table().on(instance)
    except PlatformError as err:
        return {"refused": str(err)}
    models = [
        {
            "name": resident.name,
            "holds": resident.model,
            "num_ctx": resident.num_ctx,
            "aliases": [alias.name for alias in resident.aliases],
        }
        for resident in residents
    ]
    return {
        "url": instances.base_url(__pillar__, instance),
        "wait_seconds": settings["warmup_wait"],
        "load_seconds": settings["load_timeout"],
        "models": models,
    }


def warmup_seconds(instance: str) -> float:
    """Return how long the warm-up may take: the wait for its instance and the loads, one after the other.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.warmup_seconds node1
    """
    settings = __pillar__["models"]
    places = [slot for slot in __pillar__["slots"].values() if slot["instance"] == instance]
    own = [row for row in __pillar__["aliases"].values() if row.get("model") and row.get("instance") == instance]
    return settings["warmup_wait"] + (len(places) + len(own)) * settings["load_timeout"]


# -- how it is done -----------------------------------------------------------------------------------------------


def _table() -> slots.Table:
    return slots.resolve(__pillar__, threads())


def _current_table() -> slots.Table:
    # A minion's own copy of the pillar may be older than the selection; states always get a new one, others do not.
    return slots.resolve(__salt__["pillar.items"](unmask=True), threads())


def _store() -> Store:
    """Return the store that all instances share, as the first of them lists it."""
    return Store(client(min(__pillar__["ollama"]["instances"])), Path(__opts__["cachedir"]) / "ai-platform-store.json")


def _row(resident: slots.Resident) -> dict[str, Any]:
    plain = {key: getattr(resident, key) for key in ("name", "slot", "kind", "instance", "model", "options")}
    return {**plain, "aliases": [alias.name for alias in resident.aliases]}


def _serving(instance: str, store: Store | None = None, table: slots.Table | None = None) -> Serving:
    seconds = __pillar__["models"]["load_timeout"]
    return Serving(client(instance), store or _store(), table or _table(), instance, seconds)


def _refuse_shared_weights() -> None:
    """Refuse a table that has one model twice under different names, by what is in the store."""
    store, table = _store(), _table()
    weights = {ollama.normalise(one.model): store.weights(one.model) for one in table.residents}
    slots.refuse(slots.problems(table, {name: digest for name, digest in weights.items() if digest}))


def _refuse_crowded_nodes() -> None:
    """Refuse a table whose models need more memory than their instances' nodes have, by the sizes in the store."""
    tags, sizes = _store().tags, dict.fromkeys(__pillar__["ollama"]["instances"], 0)
    for one in _table().residents:
        sizes[one.instance] += tags.get(ollama.normalise(one.model), {}).get("size", 0)
    __salt__["numa.plan"](sizes=sizes)
