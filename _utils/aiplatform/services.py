"""The one table of services: where each runs, and who may reach it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiplatform.schema import Problem, one_of

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """One service on one host."""

    service: str
    host: str
    address: str
    port: int
    scheme: str
    health: str | None

    @property
    def url(self) -> str:
        """The service's base URL."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme}://{address}:{self.port}"


def expand(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the table with every row's ``port`` a number and every ``each`` row written out.

    ``port_key`` is added: the pillar key that an operator edits for it. A row that points at a mapping which no
    formula of this tree describes is left out.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, row in settings["services"].items():
        plain = {key: value for key, value in row.items() if key not in {"each", "port"}}
        if "each" in row:
            for entry, values in (lookup(settings, row["each"]) or {}).items():
                rows[f"{name}-{entry}"] = plain | {"port": values["port"], "port_key": f"{row['each']}.{entry}.port"}
        elif isinstance(row.get("port"), str):
            rows[name] = plain | {"port": lookup(settings, row["port"]), "port_key": row["port"]}
        else:
            rows[name] = plain | {"port": row.get("port"), "port_key": row.get("port_key", f"services.{name}.port")}
    return rows


def lookup(settings: Settings, key: str) -> Any:
    """Return the value of a dotted key such as ``ollama.instances``; None where it is not there."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def hosts_of(settings: Settings, role: str) -> dict[str, str]:
    """Return ``{minion id: address}`` of the hosts that hold a role."""
    hosts = settings["platform"]["hosts"].items()
    return {name: host["address"] for name, host in hosts if role in host["roles"]}


def running(settings: Settings, row: Mapping[str, Any]) -> dict[str, str]:
    """Return ``{minion id: address}`` of the hosts that run a service: all of its role, or the one that ``only`` names.

    row
        The service's row of the expanded table.
    """
    found = hosts_of(settings, row["role"])
    if not row.get("only"):
        return found
    one = lookup(settings, row["only"]) or next(iter(found), None)
    return {name: address for name, address in found.items() if name == one}


def endpoints(settings: Settings) -> list[Endpoint]:
    """Return every service on every host that runs it, by host and port.

    settings
        The effective pillar.
    """
    found = [
        Endpoint(name, host, address, row["port"], row["scheme"], row["health"])
        for name, row in expand(settings).items()
        for host, address in running(settings, row).items()
    ]
    return sorted(found, key=lambda endpoint: (endpoint.host, endpoint.port))


def urls(settings: Settings) -> dict[str, str]:
    """Return ``{service: URL}``; a service that runs on several hosts is named ``<service>@<host>``."""
    ends = endpoints(settings)
    alone = {end.service for end in ends if sum(other.service == end.service for other in ends) == 1}
    return {end.service if end.service in alone else f"{end.service}@{end.host}": end.url for end in ends}


def sites(settings: Settings) -> list[dict[str, str]]:
    """Return the public names: ``url``, and ``entry``, who may enter there and with what; none without a proxy."""
    if not hosts_of(settings, "nginx_proxy"):
        return []
    rows = {row["name"]: row.get("entry") for row in expand(settings).values() if row.get("name")}
    domain = settings["platform"]["domain"]
    return [{"url": f"https://{name}.{domain}", "entry": entry or ""} for name, entry in sorted(rows.items())]


def problems(settings: Settings) -> list[Problem]:
    """Return what is wrong with the table: ports that are missing or taken twice on one host, services without one."""
    return [*_missing_ports(settings), *_overlapping_ports(settings), *_strange_hosts(settings)]


def _missing_ports(settings: Settings) -> Iterator[Problem]:
    for row in expand(settings).values():
        if not isinstance(row["port"], int):
            yield Problem(row["port_key"], row["port"], "a port, or the pillar key that holds one")


def _strange_hosts(settings: Settings) -> Iterator[Problem]:
    for key, role in sorted({(row["only"], row["role"]) for row in expand(settings).values() if row.get("only")}):
        hosts, named = hosts_of(settings, role), lookup(settings, key)
        if named is not None and named not in hosts:
            yield Problem(str(key), named, f"a host with role {role}: {one_of(named, hosts)}")


def _overlapping_ports(settings: Settings) -> Iterator[Problem]:
    taken: dict[tuple[str, int, bool], str] = {}
    reported: set[tuple[str, str]] = set()
    for end in endpoints(settings) if not list(_missing_ports(settings)) else []:
        other = taken.setdefault((end.host, end.port, end.scheme == "udp"), end.service)
        if other != end.service and (other, end.service) not in reported:
            reported.add((other, end.service))
            wanted = f"a port of its own: {other} on {end.host} has this one"
            yield Problem(expand(settings)[end.service]["port_key"], end.port, wanted)
