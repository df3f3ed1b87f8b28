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
        if row["loaded"] and row["node"] is not None:
            found[f"memory_{row['name']}"] = partial(_local, host, row)
        if row.get("slot"):
            found[f"speed_{row['name']}"] = partial(_fast, host, row)
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


def _local(host: Host, row: dict[str, Any]) -> Finding:
    """The slot's model lies in the memory of its instance's own node, which bound CPUs do not prove."""
    share, least = row["local_share"], host.pillar["ollama"]["local_share"]
    return Finding(
        f"memory of {row['name']} on {row['instance']}",
        share is not None and share >= least,
        f"at least {least:.0%} of it on NUMA node {row['node']}",
        "cannot be told" if share is None else f"{share:.1%}",
        f"salt {host.id} numa.residency {row['instance']}; docs/numa.md has the three causes",
    )


def _answers(host: Host, row: dict[str, Any], alias: str) -> Finding:
    """A question to the alias is answered, and fast enough."""
    reply, least = _reply(host, alias), host.pillar["verify"]["min_tokens_per_second"]
    return Finding(
        f"answer of {alias} on {row['instance']}",
        reply.tokens > 0 and reply.speed >= least,
        f"at least {least:g} tokens per second",
        reply.error or f"{reply.tokens} tokens, {reply.speed:.1f} per second",
        "docs/numa.md: a broken binding of CPUs and memory is the usual reason for slow ones",
    )


def _fast(host: Host, row: dict[str, Any]) -> Finding:
    """The slot's model decodes at a fair share of what the memory of its node allows (docs/benchmark.md)."""
    check, least = f"speed of {row['name']} on {row['instance']}", host.pillar["verify"]["min_roofline_share"]
    expected = f"at least {least:.0%} of what memory allows {row['model']}"
    roof = host.salt["benchmark.roofline"](row["model"], row["instance"])
    if not roof:
        hint = f"salt {host.id} benchmark.memory {row['instance']}"
        return Finding(check, ok=True, expected=expected, actual=f"what memory allows has not been measured: {hint}")
    reply = _reply(host, _called(row))
    share = reply.speed / roof["tokens_per_second"]
    speed = f"{reply.speed:.1f} tokens per second, {share:.1%} of {roof['tokens_per_second']:.1f}"
    return Finding(
        check,
        reply.tokens > 0 and share >= least,
        expected,
        reply.error or f"{speed} ({roof['gigabytes_per_second']:g} GB/s)",
        f"suspect the binding of {row['instance']} to its CPUs and memory: salt {host.id} numa.residency "
        f"{row['instance']}; docs/numa.md",
    )


def _called(row: dict[str, Any]) -> str:
    """Return the name by which a slot is asked."""
    return str(next(iter(row["aliases"]), row["name"]))


def _reply(host: Host, name: str) -> asking.Reply:
    """Return what a name answered; all are asked by the first check that wants to know."""
    tokens = host.pillar["verify"]["answer_tokens"]
    replies: dict[str, asking.Reply] = host.once("verify.replies", lambda: asking.ask_all(_names(host), tokens))
    return replies[name]


def _names(host: Host) -> dict[str, str]:
    """Return each name that is asked with the URL of its instance."""
    named = {
        name: row for row in _slots(host) for name in (*row["aliases"], *([_called(row)] if row.get("slot") else []))
    }
    return {name: instances.base_url(host.pillar, row["instance"]) for name, row in named.items()}
