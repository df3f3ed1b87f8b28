"""What the TLS proxy serves, computed from pillar: sites, the API's routes, the names of the certificate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiplatform import services, slots

INSTANCES = "ollama.instances."
ETC = "/etc/nginx"
FOLDER = f"{ETC}/ai-platform"
LOGS = "/var/log/nginx"
MODULES = {"Debian": "/etc/nginx/modules-enabled", "RedHat": "/usr/share/nginx/modules"}

Settings = Mapping[str, Any]


def context(pillar: Settings, family: str) -> dict[str, Any]:
    """Return what the template of ``nginx.conf`` is filled with.

    pillar
        The effective pillar.
    family
        The family of the proxy's operating system, as in the grain ``os_family``.
    """
    nginx = pillar["nginx"]
    certificate, key = certificate_paths(pillar)
    return {
        "user": nginx["user"][family],
        "modules": MODULES[family],
        "etc": ETC,
        "pid": "/run/nginx.pid",
        "logs": LOGS,
        "folder": FOLDER,
        "certificate": certificate,
        "authorities": authorities(pillar),
        "key": key,
        "hsts_seconds": nginx["hsts_seconds"],
        "config": f"{ETC}/nginx.conf",
        "ports": {"http": 80, "https": 443, "status": nginx["status_port"]},
        "addresses": ["", "[::]:"] if ":" in pillar["address"] else [""],
        "names": names(pillar),
        "sites": sites(pillar),
        "api": nginx["api"] | {"public": _api_name(pillar), "instances": instances(pillar)},
    }


def names(pillar: Settings) -> list[str]:
    """Return every public name of the table of services, in order."""
    labels = {row["name"] for row in pillar["services"].values() if row.get("name")}
    return sorted(f"{label}.{pillar['platform']['domain']}" for label in labels)


def certificate_paths(pillar: Settings) -> tuple[str, str]:
    """Return where the proxy's certificate and key are."""
    settings, domain = pillar["nginx"]["certificate"], pillar["platform"]["domain"]
    if settings["mode"] == "vault":
        return f"{FOLDER}/tls/proxy.crt", f"{FOLDER}/tls/proxy.key"
    own = f"{ETC}/ssl/{domain}"
    return settings["certificate"] or f"{own}.crt", settings["key"] or f"{own}.key"


def authorities(pillar: Settings) -> list[str]:
    """Return the files of the authorities by which services with TLS are known: Vault's, then those of other sites."""
    return [f"{FOLDER}/upstream-authority.pem", *sorted({row["authority"] for row in sites(pillar)} - {None})]


def sites(pillar: Settings) -> list[dict[str, Any]]:
    """Return the sites besides the API: each service that has a public name, and runs on a host."""
    nginx, found = pillar["nginx"], []
    for name, row in sorted(pillar["services"].items()):
        servers = _servers(pillar, row)
        if row.get("name") and servers and not _is_instance(row):
            site = {
                "upstream": name.replace("-", "_"),
                "public": f"{row['name']}.{pillar['platform']['domain']}",
                "scheme": row["scheme"],
                "servers": servers,
            }
            found.append(dict(nginx["site"]) | dict(nginx["sites"].get(name, {})) | site)
    return found


def instances(pillar: Settings) -> dict[str, list[str]]:
    """Return ``{Ollama instance: its addresses and ports}``, one for each host that runs it."""
    rows = (row for _, row in sorted(pillar["services"].items()) if _is_instance(row))
    return {row["port_key"].removeprefix(INSTANCES).removesuffix(".port"): _servers(pillar, row) for row in rows}


def routes(pillar: Settings) -> dict[str, Any]:
    """Return which instance answers for each name that the API offers; models by their own names are not among them.

    A slot without a model keeps its route: the instance itself says that there is none.
    """
    numbered = {int(number): slot["instance"] for number, slot in pillar["slots"].items()}
    found = {slots.technical_name(number): {"instance": at, "slot": number} for number, at in numbered.items()}
    for name, row in pillar["aliases"].items():
        if row.get("model"):
            found[name] = {"instance": row["instance"]}
        elif row.get("slot") in numbered:
            found[name] = found[slots.technical_name(row["slot"])]
    return {
        "max_tokens": pillar["nginx"]["api"]["max_tokens"],
        "models": dict(sorted(found.items())),
    }


def _is_instance(row: Mapping[str, Any]) -> bool:
    return str(row.get("port_key")).startswith(INSTANCES)


def _api_name(pillar: Settings) -> str:
    labels = [row["name"] for row in pillar["services"].values() if _is_instance(row) and row.get("name")]
    return f"{labels[0]}.{pillar['platform']['domain']}" if labels else ""


def _servers(pillar: Settings, row: Mapping[str, Any]) -> list[str]:
    hosts = services.running(pillar, row)
    return [
        f"[{address}]:{row['port']}" if ":" in address else f"{address}:{row['port']}" for address in hosts.values()
    ]
