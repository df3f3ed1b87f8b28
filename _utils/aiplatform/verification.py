"""What a deployed host is asked: the families of checks after a deploy, in the order in which they are made.

A service's checks stand beside its logic, in ``verify_<service>.py``; here is the list of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from aiplatform import (
    reach,
    verify_chat,
    verify_edge,
    verify_keycloak,
    verify_names,
    verify_ollama,
    verify_postgres,
    verify_vault,
)
from aiplatform.checks import Check, Finding, Host, Suite
from aiplatform.services import Endpoint


def reached(host: Host) -> dict[str, Check]:
    """Return a check for each service on another host: open to this one, or closed, as the table says.

    A closed port is silent until its timeout. So all are tried in the background from now on, and judged last.
    """
    ends = reach.from_host(host.pillar, host.id)
    seconds = host.pillar["verify"]["connect_timeout"]
    tried = host.once("verify.reached", lambda: _background(partial(reach.connect_all, list(ends.values()), seconds)))
    return {name: partial(_reached, host, end, tried) for name, end in ends.items()}


def _background(work: Callable[[], dict[str, str]]) -> Future[dict[str, str]]:
    pool = ThreadPoolExecutor(max_workers=1)
    started = pool.submit(work)
    pool.shutdown(wait=False)
    return started


def _reached(host: Host, end: Endpoint, tried: Future[dict[str, str]]) -> Finding:
    return reach.judged(host.pillar, end, host.id, tried.result()[end.url])


SUITE = Suite(
    verify_vault.checks,
    verify_ollama.checks,
    verify_postgres.checks,
    verify_keycloak.checks,
    verify_chat.checks,
    verify_names.checks,
    verify_edge.checks,
    reached,
)
