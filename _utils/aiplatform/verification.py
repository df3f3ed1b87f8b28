"""What a deployed host is asked: the families of checks after a deploy, in the order in which they are made.

A service's checks stand beside its logic, in ``verify_<service>.py``; here is the list of all of them.
"""

from __future__ import annotations

from functools import partial

from aiplatform import reach, verify_ollama, verify_vault
from aiplatform.checks import Check, Finding, Host, Suite


def reached(host: Host) -> dict[str, Check]:
    """Return a check for each service on another host: open to this one, or closed, as the table says."""
    return {name: partial(_reached, host, name) for name in reach.from_host(host.pillar, host.id)}


def _reached(host: Host, name: str) -> Finding:
    ends, seconds = reach.from_host(host.pillar, host.id), host.pillar["verify"]["connect_timeout"]
    # All are tried at once, by the first check: a port that is silent costs its timeout.
    tried = host.once("verify.reached", lambda: reach.connect_all(ends.values(), seconds))
    return reach.judged(host.pillar, ends[name], host.id, tried[ends[name].url])


SUITE = Suite(reached, verify_vault.checks, verify_ollama.checks)
