"""The slots of this host: which model each holds, under which names, and whether it is loaded."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

from aiplatform import (
    footprint,
    instances,
    manifests,
    ollama,
    registry,
    rotation,
    slot_rules,
    slot_status,
    slots,
    tending,
    transfer,
)
from aiplatform.blobs import Blobs
from aiplatform.errors import PlatformError
from aiplatform.schema import Problem
from aiplatform.serving import Serving
from aiplatform.slot_rules import Model, Node
from aiplatform.store import Store

log = logging.getLogger(__name__)

PHASE = "ai_platform/models/phase"
MIB = 2**20
# What stops and unloads on purpose.
BUSY = ("state.*", "dry_run.*", "benchmark.*", "ollama.wipe")
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
    return [slot_status.row(resident) for resident in _table().residents]


def status() -> list[dict[str, Any]]:
    """Return the table with what is the case.

    Each row has ``loaded``, ``digest`` of the weights, ``context``, ``size`` (bytes), ``node``, ``local_share`` (0 to
    1) of the memory that is on it, ``pid``, ``since`` and ``tokens_per_second``.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.status
    """
    pillar = _current_pillar()
    table = slot_rules.compiled(pillar, threads())
    return [_status_of(resident, table, pillar) for resident in table.residents]


def _status_of(resident: slots.Resident, table: slots.Table, pillar: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the status; of an instance that does not answer, or fails, that it has nothing loaded."""
    store = _store(resident.instance)
    try:
        digest = store.weights(resident.model)
        moved = store.weights(resident.name) != digest
        runner = None if moved else _serving(resident.instance, store, table).runner(resident)
    except (ollama.InstanceDown, ollama.Timeout, ollama.ServerFailed):
        digest, runner = None, None
    unit = pillar["ollama"]["instances"][resident.instance]["unit"]
    pids = slot_status.pids(int(__salt__["service.show"](unit).get("MainPID", 0))) if runner else {}
    return slot_status.row(resident) | slot_status.facts(resident, digest, runner, pids, pillar)


def foreign(instance: str) -> list[str]:
    """Return the names of what an instance has loaded without need: weights that none of its own names stands for.

    A model that is called by its own name on the wrong instance is one. Embedding models are not listed.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.foreign node1
    """
    return _serving(instance, table=slot_rules.compiled(_current_pillar(), threads())).foreign()


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
    insecure = registry.is_plain(model, __pillar__["models"]["insecure_registries"])
    source = f"http://{model}" if insecure else model
    began, api, blobs = time.monotonic(), client(_answering()), _blobs()
    for digest in blobs.damaged(model):
        # Ollama takes a blob that is there for right, and would not fetch it.
        blobs.discard(digest)
    for attempt in range(1, PULL_ATTEMPTS + 1):
        try:
            transfer.follow("pull", model, api.pull(source, insecure=insecure), __opts__, __salt__)
        except ollama.ModelNotFound:
            raise
        except ollama.OllamaError as err:
            if attempt == PULL_ATTEMPTS:
                raise
            log.warning("Pull of %s broke off (attempt %d of %d): %s", model, attempt, PULL_ATTEMPTS, err)
        else:
            blobs.trust(model)
            _tell(model, "pull", time.monotonic() - began)
            return True
    return False


def pull_all(models: list[str]) -> bool:
    """Fetch models, two of them side by side; where one fails, those under way end and no other begins.

    CLI Example:

    .. code-block:: bash

        salt -t 86400 ai_server model_slots.pull_all '[llama3.1:8b, mistral:7b]'
    """
    transfer.side_by_side(pull, models)
    return True


def damaged(models: list[str]) -> dict[str, str]:
    """Return which of these models have a file in the store that is not what its digest says, and what is wrong.

    Each file is read once, and again when its size, time or inode have changed.

    CLI Example:

    .. code-block:: bash

        salt -t 3600 ai_server model_slots.damaged '[llama3.1:8b]'
    """
    blobs = _blobs()
    return {model: "; ".join(wrong.values()) for model in models if (wrong := blobs.damaged(model))}


def misfits(slot: int, model: str | None, force: bool = False) -> list[str]:
    """Return why a model cannot go into a slot, beside what is loaded now; empty where it can. Changes nothing.

    model
        None for the benchmark's choice.
    force
        It may be of the other kind.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.misfits 5 mistral:7b
    """
    pillar = _current_pillar()
    try:
        wanted = rotation.wanted(pillar, slot, model, force)
        return [str(problem) for problem in _misfits(wanted, slots.resolve(wanted, threads()))]
    except PlatformError as err:
        return [str(err)]


def refuse() -> bool:
    """Refuse a slot table that cannot be beside what is loaded, before anything is pulled or loaded.

    What is not in the store yet is asked of its registry. Raises ``PlatformError`` with each mistake, its key and line.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.refuse
    """
    slot_rules.refuse(_misfits(__pillar__, _table()), __pillar__["origins"])
    return True


def _misfits(pillar: dict[str, Any], table: slots.Table) -> list[Problem]:
    store = _store()
    models = {ollama.normalise(one.model): _facts(one.model, store) for one in table.residents}
    outgoing, staying = {}, {}
    for name in pillar["ollama"]["instances"]:
        serving = _serving(name, store, table)
        # One that does not answer has nothing loaded; of a damaged model it tells nothing until that is fetched again.
        with suppress(ollama.InstanceDown, ollama.Timeout, ollama.ServerFailed):
            outgoing[name], staying[name] = serving.outgoing(), serving.staying()
    return slot_rules.misfits(pillar, table, models, _nodes(), outgoing, staying)


def _facts(model: str, store: Store) -> Model:
    """Return what is known of a model: by the store, else by its registry."""
    # Of a damaged one Ollama may be able to tell nothing.
    if not store.missing([model]) and not _blobs().damaged(model):
        return store.facts(model)
    remote = registry.ask(model, __pillar__["models"]["insecure_registries"])
    return Model(weights=remote.weights, size=remote.size)


def _nodes() -> list[Node]:
    """Return the memory that the models on each node, and all of them, may use together."""
    reserve, limits = __pillar__["ollama"]["memory_reserve_mib"] * MIB, __salt__["numa.topology"]()["limits"]
    return slot_rules.nodes(__salt__["numa.plan"](), reserve, limits["memory"])


# -- an instance's residents --------------------------------------------------------------------------------------


def differences(instance: str) -> dict[str, Any]:
    """Return how the instance's names and loaded models differ from the table, as changes of a state.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.differences node1
    """
    serving = _serving(instance)
    try:
        refuse()
        return serving.differences()
    except ollama.InstanceDown:
        return serving.everything()


def converge(instance: str) -> list[dict[str, Any]]:
    """Make the instance's names and loaded models those of the table; returns the phases, each with its seconds.

    Raises ``PlatformError`` saying what still serves where a step fails; its notes tell the phases that went before.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.converge node1
    """
    phases: list[dict[str, Any]] = []
    try:
        _serving(instance, tell=lambda *told: phases.append(_tell(*told))).converge()
    except PlatformError as err:
        if phases:
            err.add_note(f"Done before: {rotation.phase_text(phases)}")
        raise
    return phases


def made(instance: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return which of these changes, as ``differences`` told them, are made by now; none where that cannot be told.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.made node1 '{slot-5: {}}'
    """
    try:
        left = _serving(instance).differences()
    except PlatformError:
        return {}
    return {key: change for key, change in changes.items() if key not in left}


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
        expected = "the unit loads the models that its instance serves, and ends well"
        hint = f"systemctl status {unit}; journalctl -u {unit}"
        raise PlatformError("The warm-up failed", where=unit, expected=expected, actual=why, hint=hint)
    return True


def warmup_settings(instance: str) -> dict[str, Any]:
    """Return the content of the warm-up's settings file; of a table that is refused, only why.

    The states that need it ask for it while they are compiled, where an error would hide the one that is told by the
    state that comes first.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.warmup_settings node1
    """
    try:
        residents = _table().on(instance)
    except PlatformError as err:
        return {"refused": str(err)}
    return tending.warmup(instances.base_url(__pillar__, instance), residents, __pillar__["models"])


def warmup_seconds(instance: str) -> float:
    """Return how long the warm-up may take: the wait for its instance and the loads, one after the other.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.warmup_seconds node1
    """
    return tending.warmup_seconds(__pillar__, instance)


def neglected() -> dict[str, str]:
    """Return ``{instance: what is wrong}`` of those that do not answer, or have not loaded what they last served.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.neglected
    """
    return tending.neglected(tending.settings())


def tend() -> dict[str, str]:
    """Load again what is not loaded, and restart an instance that does not answer; returns what was wrong with each.

    Nothing where one of ``BUSY`` is being run: a deploy, a benchmark or a wipe stops and unloads on purpose. Two at
    once are one. Raises ``PlatformError`` with each instance that stays cold; the others are warm then.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.tend
    """
    busy = [job for fun in BUSY for job in __salt__["saltutil.is_running"](fun)]
    with tending.alone(Path(__opts__["cachedir"])) as alone:
        if busy or not alone:
            return {"skipped": f"{busy[0]['fun']} is being run" if busy else "another one is at it"}
        found = neglected()
        units = {name: about["unit"] for name, about in __pillar__["ollama"]["instances"].items()}
        tending.heal(found, units, __salt__["service.restart"], warm_up)
        return found


# -- how it is done -----------------------------------------------------------------------------------------------


def _table() -> slots.Table:
    return slot_rules.compiled(__pillar__, threads())


def _current_pillar() -> dict[str, Any]:
    # A minion's own copy of the pillar may be older than the selection; states always get a new one, others do not.
    return __salt__["pillar.items"](unmask=True)


def _answering() -> str:
    """Return an instance that answers, for all of them serve the same store; the first one where none does."""
    names = sorted(__pillar__["ollama"]["instances"])
    return next((name for name in names if client(name).health()), names[0])


def _store(instance: str = "") -> Store:
    """Return the store that all instances share, as this one lists it, or one that answers."""
    return Store(client(instance or _answering()), Path(__opts__["cachedir"]) / "ai-platform-store.json")


def _blobs() -> Blobs:
    return Blobs(Path(instances.models_dir(__pillar__)), Path(__opts__["cachedir"]) / "ai-platform-blobs.json")


def _serving(instance: str, store: Store | None = None, table: slots.Table | None = None, tell: Any = None) -> Serving:
    seconds, found = __pillar__["models"]["load_timeout"], store or _store(instance)
    return Serving(
        client(instance), found, _blobs(), table or _table(), instance, seconds, tell, lambda one: _room(one, found)
    )


def _room(resident: slots.Resident, store: Store) -> None:
    need = slot_rules.needs(__pillar__, resident, store.facts(resident.model))
    footprint.refuse_without_room(resident.model, need, footprint.available())


def _tell(name: str, phase: str, seconds: float) -> dict[str, Any]:
    """Tell log and master that a phase has ended; returns what was told."""
    data = {"name": name, "phase": phase, "seconds": round(seconds, 2), "at": round(time.time(), 2)}
    log.info("Slots: %s", data)
    transfer.send(PHASE, data, __opts__, __salt__)
    return data
