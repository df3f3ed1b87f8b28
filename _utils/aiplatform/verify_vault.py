"""Whether a host gets from Vault what is its own, and nothing else; and whether administrators get in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from salt.exceptions import CommandExecutionError

from aiplatform import vault_tls
from aiplatform.checks import Check, Finding, Host
from aiplatform.vault_oidc import ADMIN_ROLE
from aiplatform.vault_policy import ADMIN_POLICY


def checks(host: Host) -> dict[str, Check]:
    """Return the checks of a host that holds a role; those of the certificate on Vault's own host alone."""
    if not host.roles:
        return {}
    found: dict[str, Check] = {
        "vault_health": partial(_health, host),
        "vault_own_secret": partial(_own_secret, host),
        "vault_other_secret": partial(_other_secret, host),
    }
    # The others' trust ends with the same certificate.
    if host.holds_vault:
        found["vault_certificate"] = partial(_certificate, host)
    return found


def _health(host: Host) -> Finding:
    """Vault answers over TLS, initialised and unsealed."""
    reply = host.salt["vault.query"]("GET", "sys/seal-status")
    actual = f"initialized {reply['initialized']}, sealed {reply['sealed']}".lower()
    expected = "initialized true, sealed false"
    return Finding("Vault's health", actual == expected, expected, actual)


def _paths(host: Host, *, readable: bool) -> list[str]:
    """Return the paths of the secret map that the host's roles may read, or those that they may not."""
    own, settings = set(host.roles), host.pillar["vault"]
    base = f"{settings['mount']}/{host.pillar['platform']['slug']}"
    rows = settings["secrets"].items()
    return [f"{base}/{name}" for name, row in rows if bool(own & set(row["readers"])) == readable]


def _own_secret(host: Host) -> Finding:
    """The host reads the first secret that is its own; only the names of the keys are shown."""
    paths = _paths(host, readable=True)
    if not paths:
        return Finding("its own secrets in Vault", ok=True, expected="none", actual="none: no secret names its roles")
    keys = sorted(host.salt["vault.read_secret"](paths[0]))
    return Finding(f"secret {paths[0]}", bool(keys), "it can be read", f"keys {', '.join(keys)}")


def _other_secret(host: Host) -> Finding:
    """The host is refused a secret that is not its own."""
    base = f"{host.pillar['vault']['mount']}/{host.pillar['platform']['slug']}-other"
    path = next(iter(_paths(host, readable=False)), f"{base}/anything")
    what, expected = f"foreign secret {path}", "permission denied"
    try:
        host.salt["vault.read_secret"](path)
    except CommandExecutionError as err:
        refused = expected in str(err).lower()
        return Finding(what, refused, expected, expected if refused else str(err))
    return Finding(what, ok=False, expected=expected, actual="it can be read")


def _certificate(host: Host) -> Finding:
    """The certificate of the running listener, not of the file: a new one counts when it is in use."""
    address = host.pillar["platform"]["hosts"][host.id]["address"]
    port = host.pillar["services"]["vault"]["port"]
    shown = vault_tls.presented(address, port)
    least, left = host.pillar["verify"]["certificate_days"], vault_tls.days_left(shown)
    return Finding(
        f"Vault's certificate on {address}:{port}",
        left >= least,
        f"valid for at least {least} more days",
        f"{left:.1f} days, until {vault_tls.ends(shown)}",
        "salt-run vault_server.bootstrap renews it (vault.renew_days in pillar)",
    )


def administrators(told: Mapping[str, Any]) -> Finding:
    """Vault lets administrators in by their sign-on: that nobody else gets in, a check person finds out.

    told
        What ``vault_oidc.configure`` says in a dry run, on the master.
    """
    expected = f"{ADMIN_ROLE} of the realm gets policy {ADMIN_POLICY}, as pillar wants it"
    changes = ", ".join(told["changes"])
    actual = expected if told["result"] is True else f"otherwise: {changes}" if changes else str(told["comment"])
    return Finding(
        "administrators' sign-on to Vault", actual == expected, expected, actual, "salt-run vault_oidc.configure"
    )
