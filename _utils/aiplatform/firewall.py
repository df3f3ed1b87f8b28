"""The firewall of a host, rendered from the table of services: a table of nftables that is the platform's own.

It decides about the platform's ports and the platform's containers only. Whatever else a host listens on (ssh, Salt) or
forwards, and every other table, is left alone: the chains' policy is to accept, and each port of ours ends with a drop.

A port that a container publishes never passes the chain ``input``: Docker rewrites its packets to the container's
address, and the kernel forwards them. The same table decides once more about what goes out to the containers' bridge.
"""

from __future__ import annotations

import fnmatch
import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiplatform import ollama_container, schema, services

TABLE = "inet ai_platform"
CONTAINERS = "containers"
MASTER = "master"
ANY = "any"
# How the pillar keys of the native instances' ports begin.
INSTANCES = "ollama.instances."
# Docker before 28 lets a neighbour on the same wire reach what is published on 127.0.0.1 (moby issue 45610).
LOOPBACK = ['iifname != "lo" ip daddr 127.0.0.0/8 drop comment "loopback is this host\'s own"']

Settings = Mapping[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def ruleset(settings: Settings, host: str) -> str:
    """Return the text that nft loads on a host, in one transaction: the old table goes as the new one comes.

    settings
        The effective pillar: ``services``, ``platform`` and ``firewall``.
    host
        The minion id; a host that the pillar does not name gets an empty table.
    """
    chains = [rules(settings, host), forward_rules(settings, host), LOOPBACK]
    received, forwarded, raw = ("\n".join(f"        {rule}" for rule in chain) for chain in chains)
    digest = hashlib.sha256("\n".join([received, forwarded, raw]).encode()).hexdigest()
    return f"""\
# What reaches the platform's ports on this host. Managed by Salt, from the table of services in pillar.
add table {TABLE}
delete table {TABLE}
table {TABLE} {{
    comment "{digest}"
    chain input {{
        type filter hook input priority filter - 10; policy accept;
{received}
    }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
{forwarded}
    }}
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
{raw}
    }}
}}
"""


def digest_of(text: str) -> str:
    """Return the digest that ``ruleset`` wrote into a text, or nft into its listing; empty where there is none."""
    _, _, rest = text.partition('comment "')
    return rest.partition('"')[0] if len(rest.partition('"')[0]) == hashlib.sha256().digest_size * 2 else ""


def rules(settings: Settings, host: str) -> list[str]:
    """Return the rules of a host's chain, in order."""
    found = ['iifname "lo" accept', "ct state established,related accept"]
    for name, row in _rows(settings, host):
        found += _of_service(settings, name, row)
    return found


def forward_rules(settings: Settings, host: str) -> list[str]:
    """Return the rules about what goes out to the bridge of the platform's containers, in order.

    A container is reached by the others on its bridge, by its own host, and from elsewhere by a published port that the
    table of services names, by who may reach that one; never by its own address.
    """
    bridge = f'oifname "{settings["containers"]["bridge"]}"'
    found = [
        f"{bridge} ct state established,related accept",
        f'iifname "{settings["containers"]["bridge"]}" {bridge} accept',
    ]
    for name, row in _rows(settings, host):
        protocol = "udp" if row["scheme"] == "udp" else "tcp"
        port = f"{bridge} ct status dnat meta l4proto {protocol} ct original proto-dst {row['port']}"
        sources = [""] if ANY in row["reach"] else [f"{source} " for source in _sources(settings, row["reach"])]
        found += [f'{source}{port} accept comment "{name}"' for source in sources]
    return [*found, f'{bridge} drop comment "containers"']


def lets_containers_in(settings: Settings, host: str, service: str, subnet: str) -> bool:
    """Return whether the platform's containers on a host reach one of its services.

    service
        Its name in the expanded table; what the firewall has no rule about is open.
    subnet
        The addresses of the containers' network.
    """
    row = dict(_rows(settings, host)).get(service)
    if row is None or ANY in row["reach"]:
        return True
    bridges, inside = settings["firewall"]["container_interfaces"], ipaddress.ip_network(subnet)
    if CONTAINERS in row["reach"] and any(
        fnmatch.fnmatchcase(settings["containers"]["bridge"], one) for one in bridges
    ):
        return True
    named = [ipaddress.ip_network(who) for who in row["reach"] if schema.is_network(who)]
    return any(network.version == inside.version and _within(inside, network) for network in named)


def _rows(settings: Settings, host: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the services that a host runs, and Ollama's containers that are open to a network, by port."""
    table = sorted(services.expand(settings).items(), key=lambda item: (item[1]["port"], item[0]))
    mine = [(name, row) for name, row in table if host in services.running(settings, row)]
    if ollama_container.is_used(settings):
        # Who reaches a container is said by its profile alone, which may have a native instance's port.
        mine = [(name, row) for name, row in mine if not row["port_key"].startswith(INSTANCES)]
    return [*mine, *ollama_container.rows(settings)]


def _of_service(settings: Settings, name: str, row: Mapping[str, Any]) -> list[str]:
    if ANY in row["reach"]:
        return []
    port = f"{'udp' if row['scheme'] == 'udp' else 'tcp'} dport {row['port']}"
    found = [f"{source} {port} accept" for source in _sources(settings, row["reach"])]
    return [*found, f'{port} drop comment "{name}"']


def _sources(settings: Settings, reach: Iterable[str]) -> list[str]:
    addresses: set[str] = set()
    interfaces: Sequence[str] = []
    for who in reach:
        if who == CONTAINERS:
            interfaces = settings["firewall"]["container_interfaces"]
        elif who == MASTER:
            addresses |= {address for address in [settings["platform"]["master"]["address"]] if address}
        elif schema.is_network(who):
            addresses.add(who)
        else:
            addresses |= set(services.hosts_of(settings, who).values())
    return [*_families(addresses), *(f'iifname "{interface}"' for interface in interfaces)]


def _families(addresses: Iterable[str]) -> list[str]:
    """Return one match a family of addresses and networks, so that nft gets sets of one type that do not overlap."""
    found = []
    known = {ipaddress.ip_network(address) for address in addresses}
    for version, word in ((4, "ip"), (6, "ip6")):
        family = sorted(network for network in known if network.version == version)
        listed = ", ".join(_short(one) for one in family if not any(one != big and _within(one, big) for big in family))
        if listed:
            found.append(f"{word} saddr {{ {listed} }}")
    return found


def _within(small: Network, big: Network) -> bool:
    """Say whether a network is part of another one of its family."""
    first, last = int(small.network_address), int(small.broadcast_address)
    return int(big.network_address) <= first and last <= int(big.broadcast_address)


def _short(network: Network) -> str:
    """Return a network in CIDR notation, one address as that."""
    return str(network.network_address) if network.num_addresses == 1 else str(network)
