"""Whether this host does what the platform needs of it. Each check asks the running service itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from salt.exceptions import CommandExecutionError

from aiplatform import asking, checks, instances, reach, slots, vault_policy, vault_tls
from aiplatform.checks import Finding

Checks = dict[str, Callable[[], Finding]]


def names() -> list[str]:
    """Return the names of the checks that this host's roles ask for.

    CLI Example:

    .. code-block:: bash

        salt ai_server verify.names
    """
    return list(_checks())


def check(name: str) -> dict[str, Any]:
    """Make one check and return ``host``, ``check``, ``ok``, ``expected``, ``actual`` and ``hint``.

    name
        One of ``verify.names``.

    CLI Example:

    .. code-block:: bash

        salt ai_server verify.check vault_health
    """
    return checks.run(name, lambda: _checks()[name]()).on(__grains__["id"])


def run(only: list[str] | None = None) -> list[dict[str, Any]]:
    """Make every check of this host.

    only
        Beginnings of names; the checks that begin so. All where it is left out.

    CLI Example:

    .. code-block:: bash

        salt '*' verify.run
        salt ai_server verify.run only='[vault, ollama]'
    """
    wanted = tuple(only or [""])
    return [check(name) for name in names() if name.startswith(wanted)]


def _checks() -> Checks:
    found = {name: lambda name=name: _reached(name) for name in reach.from_host(__pillar__, __grains__["id"])}
    if __pillar__["roles"]:
        found |= _vault_checks() | _certificate_checks()
    if "ai_server" in __pillar__["roles"]:
        found |= _ollama_checks() | _filled_checks() | _slot_checks()
    return found


def _reached(name: str) -> Finding:
    """The service is open to this host, or closed, as the table says. All are tried at once, by the first check."""
    host, ends = __grains__["id"], reach.from_host(__pillar__, __grains__["id"])
    if "verify.reached" not in __context__:
        __context__["verify.reached"] = reach.connect_all(ends.values(), __pillar__["verify"]["connect_timeout"])
    return reach.judged(__pillar__, ends[name], host, __context__["verify.reached"][ends[name].url])


def _vault_checks() -> Checks:
    return {"vault_health": _vault_health, "vault_own_secret": _own_secret, "vault_other_secret": _other_secret}


def _vault_health() -> Finding:
    """Vault answers over TLS, initialised and unsealed."""
    reply = __salt__["vault.query"]("GET", "sys/seal-status")
    actual = f"initialized {reply['initialized']}, sealed {reply['sealed']}".lower()
    return Finding(
        "Vault's health", actual == "initialized true, sealed false", "initialized true, sealed false", actual
    )


def _paths(readable: bool) -> list[str]:
    """Return the paths of the secret map that this host's roles may read, or those that they may not."""
    own = set(__pillar__["roles"])
    base = f"{__pillar__['vault']['mount']}/{__pillar__['platform']['slug']}"
    return [
        f"{base}/{name}"
        for name, row in __pillar__["vault"]["secrets"].items()
        if bool(own & set(row["readers"])) == readable
    ]


def _own_secret() -> Finding:
    """The host reads the first secret that is its own; only the names of the keys are shown."""
    paths = _paths(readable=True)
    if not paths:
        return Finding("its own secrets in Vault", ok=True, expected="none", actual="none: no secret names its roles")
    keys = sorted(__salt__["vault.read_secret"](paths[0]))
    return Finding(f"secret {paths[0]}", bool(keys), "it can be read", f"keys {', '.join(keys)}")


def _other_secret() -> Finding:
    """The host is refused a secret that is not its own."""
    base = f"{__pillar__['vault']['mount']}/{__pillar__['platform']['slug']}-other"
    path = next(iter(_paths(readable=False)), f"{base}/anything")
    try:
        __salt__["vault.read_secret"](path)
    except CommandExecutionError as err:
        refused = "permission denied" in str(err).lower()
        return Finding(
            f"foreign secret {path}", refused, "permission denied", "permission denied" if refused else str(err)
        )
    return Finding(f"foreign secret {path}", ok=False, expected="permission denied", actual="it can be read")


def _certificate_checks() -> Checks:
    """On Vault's host alone: the others' trust ends with the same certificate."""
    on_this_host = vault_policy.vault_host(__pillar__["platform"], __pillar__["vault"]) == __grains__["id"]
    return {"vault_certificate": _certificate} if on_this_host else {}


def _certificate() -> Finding:
    """The certificate of the running listener, not of the file: a new one counts when it is in use."""
    address, port = (
        __pillar__["platform"]["hosts"][__grains__["id"]]["address"],
        __pillar__["services"]["vault"]["port"],
    )
    shown = vault_tls.presented(address, port)
    least, left = __pillar__["verify"]["certificate_days"], vault_tls.days_left(shown)
    return Finding(
        f"Vault's certificate on {address}:{port}",
        left >= least,
        f"valid for at least {least} more days",
        f"{left:.1f} days, until {vault_tls.ends(shown)}",
        "salt-run vault_server.bootstrap renews it (vault.renew_days in pillar)",
    )


def _ollama_checks() -> Checks:
    found: Checks = {}
    for name, instance in __pillar__["ollama"]["instances"].items():
        found[f"ollama_{name}"] = lambda name=name: _version(name)
        found[f"warmup_{name}"] = lambda instance=instance: _warmed(slots.warmup_unit(instance["unit"]))
        found[f"foreign_{name}"] = lambda name=name: _undisturbed(name)
    return found


def _version(instance: str) -> Finding:
    wanted, actual = __pillar__["ollama"]["version"], __salt__["ollama.version"](instance)
    return Finding(f"version of Ollama instance {instance}", actual == wanted, wanted, actual)


def _warmed(unit: str) -> Finding:
    """The warm-up unit has run and has ended well."""
    shown = __salt__["service.show"](unit)
    actual = f"{shown.get('ActiveState', 'unknown')} ({shown.get('SubState', 'unknown')})"
    return Finding(f"unit {unit}", actual == "active (exited)", "active (exited)", actual, f"journalctl -u {unit}")


def _undisturbed(instance: str) -> Finding:
    """Nothing is loaded that would take the place of a slot, such as a model called by its base name."""
    foreign = __salt__["model_slots.foreign"](instance)
    return Finding(
        f"what Ollama instance {instance} has loaded",
        not foreign,
        "models of its own slots and aliases only",
        f"foreign: {', '.join(foreign)}" if foreign else "nothing else",
        f"clients call slots and aliases by name; salt {__grains__['id']} ollama.unload {instance} <foreign name>",
    )


def _filled_checks() -> Checks:
    """Each instance that slots stand on has a model for one of them: no other check misses what nobody chose."""
    return {f"filled_{name}": lambda name=name: _filled(name) for name in slots.filled(__pillar__)}


def _filled(instance: str) -> Finding:
    # A minion's own copy of the pillar may be older than the selection.
    if "verify.pillar" not in __context__:
        __context__["verify.pillar"] = __salt__["pillar.items"](unmask=True)
    held = slots.filled(__context__["verify.pillar"]).get(instance, [])
    return Finding(
        f"slots of Ollama instance {instance}",
        bool(held),
        "a model in at least one of them",
        ", ".join(held) or "all empty",
        "salt-run benchmark.report says why: mostly the floors, benchmark.thresholds in pillar",
    )


def _slot_checks() -> Checks:
    """Each slot holds its model, and each name that clients call answers."""
    found: Checks = {}
    try:
        rows = _slots()
    except CommandExecutionError:
        # Which slots there are cannot be told: one check says why, and the others of this host are made all the same.
        return {"slots": _known_slots}
    for row in rows:
        found[f"slot_{row['name']}"] = lambda row=row: _loaded(row)
        for alias in row["aliases"]:
            found[f"alias_{alias}"] = lambda row=row, alias=alias: _answers(row, alias)
    return found


def _slots() -> list[dict[str, Any]]:
    """Return the slots as they are, asked once for all checks of a run."""
    if "verify.slots" not in __context__:
        __context__["verify.slots"] = __salt__["model_slots.status"]()
    return __context__["verify.slots"]


def _known_slots() -> Finding:
    return Finding("slots", ok=True, expected="the slots can be asked for", actual=f"{len(_slots())} slots")


def _loaded(row: dict[str, Any]) -> Finding:
    wanted = f"{row['model']} with context {row['options'].get('num_ctx')}"
    actual = f"{row['model']} with context {row['context']}" if row["loaded"] else "not loaded"
    return Finding(
        f"{row['name']} on {row['instance']}", actual == wanted, wanted, actual, "salt-call state.apply models"
    )


def _answers(row: dict[str, Any], alias: str) -> Finding:
    """A question to the alias is answered, and fast enough. All are asked by the first check."""
    if "verify.replies" not in __context__:
        names = {name: instances.base_url(__pillar__, one["instance"]) for one in _slots() for name in one["aliases"]}
        __context__["verify.replies"] = asking.ask_all(names, __pillar__["verify"]["answer_tokens"])
    reply = __context__["verify.replies"][alias]
    least = __pillar__["verify"]["min_tokens_per_second"]
    return Finding(
        f"answer of {alias} on {row['instance']}",
        reply.tokens > 0 and reply.speed >= least,
        f"at least {least:g} tokens per second",
        reply.error or f"{reply.tokens} tokens, {reply.speed:.1f} per second",
        "docs/numa.md: a broken binding of CPUs and memory is the usual reason for slow ones",
    )
