"""The platform's public names in a host's own table of names, ``/etc/hosts``: at the proxy, whatever DNS knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiplatform import services, sites

# At the end of each line that is the platform's; all others are left alone.
MARK = "# the AI platform's names, managed by Salt"


def text(present: str, settings: Mapping[str, Any]) -> str:
    """Return what the table should say: a line for each proxy, with all public names.

    present
        What it says.
    settings
        The effective pillar.
    """
    names = " ".join(sites.names(settings))
    proxies = sorted(services.hosts_of(settings, "nginx_proxy").values())
    wanted = [f"{address} {names} {MARK}" for address in proxies if names]
    lines = present.splitlines()
    if [line for line in lines if line.endswith(MARK)] == wanted:
        return present
    return "\n".join([*(line for line in lines if not line.endswith(MARK)), *wanted]) + "\n"
