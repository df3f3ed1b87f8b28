"""Whether the Ollama instances of a host serve what its slots say."""

from __future__ import annotations

from functools import partial
from typing import Any

from salt.exceptions import CommandExecutionError

from aiplatform import asking, instances, slots
from aiplatform.checks import Check, Finding, Host


def checks(host: Host) -> dict[str, Check]:
    """Return the checks of an ai_server: of each instance, each slot, and each name that clients call."""
    return {**_instances(host), **_filled_ones(host), **_residents(host)} if "ai_server" in host.roles else {}


def _instances(host: Host) -> dict[str, Check]:
    found: dict[str, Check] = {}
    for name, row in host.pillar["ollama"]["instances"].items():
        unit = slots.warmup_unit(row["unit"])
        found[f"ollama_{name}"] = partial(_version, host, name)
        found[f"warmup_{name}"] = partial(_warmed, host, unit)
        found[f"foreign_{name}"] = partial(_undisturbed, host, name)
    return found


def _version(host: Host, instance: str) -> Finding:
    wanted, actual = host.pillar["ollama"]["version"], host.salt["ollama.version"](instance)
    return Finding(f"version of Ollama instance {instance}", actual == wanted, wanted, actual)


def _warmed(host: Host, unit: str) -> Finding:
    """The warm-up unit has run and has ended well."""
    shown = host.salt["service.show"](unit)
    actual = f"{shown.get('ActiveState', 'unknown')} ({shown.get('SubState', 'unknown')})"
    return Finding(f"unit {unit}", actual == "active (exited)", "active (exited)", actual, f"journalctl -u {unit}")


def _undisturbed(host: Host, instance: str) -> Finding:
    """Nothing is loaded that would take the place of a slot, such as a model called by its base name."""
    foreign = host.salt["model_slots.foreign"](instance)
    return Finding(
        f"what Ollama instance {instance} has loaded",
        not foreign,
        "models of its own slots and aliases only",
        f"foreign: {', '.join(foreign)}" if foreign else "nothing else",
        f"clients call slots and aliases by name; salt {host.id} ollama.unload {instance} <foreign name>",
    )


def _filled_ones(host: Host) -> dict[str, Check]:
    """Each instance that slots stand on has a model for one of them: no other check misses what nobody chose."""
    return {f"filled_{name}": partial(_filled, host, name) for name in slots.filled(host.pillar)}


def _filled(host: Host, instance: str) -> Finding:
    # A minion's own copy of the pillar may be older than the selection.
    pillar = host.once("verify.pillar", lambda: host.salt["pillar.items"](unmask=True))
    held = slots.filled(pillar).get(instance, [])
    return Finding(
        f"slots of Ollama instance {instance}",
        bool(held),
        "a model in at least one of them",
        ", ".join(held) or "all empty",
        "salt-run benchmark.report says why: mostly the floors, benchmark.thresholds in pillar",
    )


def _residents(host: Host) -> dict[str, Check]:
    """Each slot holds its model, and each name that clients call answers."""
    found: dict[str, Check] = {}
    try:
        rows = _slots(host)
    except CommandExecutionError:
        # Which slots there are cannot be told: one check says why, and the others of this host are made all the same.
        return {"slots": partial(_known_slots, host)}
    for row in rows:
        found[f"slot_{row['name']}"] = partial(_loaded, row)
        for alias in row["aliases"]:
            found[f"alias_{alias}"] = partial(_answers, host, row, alias)
    return found


def _slots(host: Host) -> list[dict[str, Any]]:
    """Return the slots as they are, asked once for all checks of a run."""
    rows: list[dict[str, Any]] = host.once("verify.slots", host.salt["model_slots.status"])
    return rows


def _known_slots(host: Host) -> Finding:
    rows = len(_slots(host))
    return Finding("slots", ok=True, expected="the slots can be asked for", actual=f"{rows} slots")


def _loaded(row: dict[str, Any]) -> Finding:
    wanted = f"{row['model']} with context {row['options'].get('num_ctx')}"
    actual = f"{row['model']} with context {row['context']}" if row["loaded"] else "not loaded"
    return Finding(
        f"{row['name']} on {row['instance']}", actual == wanted, wanted, actual, "salt-call state.apply models"
    )


def _answers(host: Host, row: dict[str, Any], alias: str) -> Finding:
    """A question to the alias is answered, and fast enough. All are asked by the first check."""
    settings = host.pillar["verify"]
    reply = host.once("verify.replies", lambda: asking.ask_all(_names(host), settings["answer_tokens"]))[alias]
    least = settings["min_tokens_per_second"]
    return Finding(
        f"answer of {alias} on {row['instance']}",
        reply.tokens > 0 and reply.speed >= least,
        f"at least {least:g} tokens per second",
        reply.error or f"{reply.tokens} tokens, {reply.speed:.1f} per second",
        "docs/numa.md: a broken binding of CPUs and memory is the usual reason for slow ones",
    )


def _names(host: Host) -> dict[str, str]:
    """Return each alias with the URL of its instance."""
    return {alias: instances.base_url(host.pillar, row["instance"]) for row in _slots(host) for alias in row["aliases"]}
