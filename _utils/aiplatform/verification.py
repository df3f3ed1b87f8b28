"""What a deployed host is asked: the families of checks after a deploy, in the order in which they are made.

A service's checks stand beside its logic, in ``verify_<service>.py``; here is the list of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from aiplatform import (
    reach,
    verify_chat,
    verify_edge,
    verify_keycloak,
    verify_names,
    verify_ollama,
    verify_postgres,
    verify_sign_on,
    verify_vault,
)
from aiplatform.checks import Aside, Check, Finding, Host, Suite, aside
from aiplatform.services import Endpoint


def reached(host: Host) -> dict[str, Check]:
    """Return a check for each service on another host: open to this one, or closed, as the table says.

    A closed port is silent until its timeout, so all are tried at once and beside the other checks.
    """
    ends = reach.from_host(host.pillar, host.id)
    work = partial(reach.try_all, host.pillar, host.id, list(ends.values()), host.pillar["verify"]["connect_timeout"])
    begin = partial(host.once, "verify.reached", lambda: aside(work))
    return {name: Aside(begin, partial(_reached, host, end, begin)) for name, end in ends.items()}


def _reached(host: Host, end: Endpoint, tried: Callable[[], Future[dict[str, str]]]) -> Finding:
    return reach.judged(host.pillar, end, host.id, tried().result()[end.url])


SUITE = Suite(
    verify_vault.checks,
    verify_ollama.checks,
    verify_postgres.checks,
    verify_keycloak.checks,
    verify_sign_on.checks,
    verify_chat.checks,
    verify_names.checks,
    verify_edge.checks,
    reached,
)
