"""What the rest of the lab asks for: folders, names, addresses and versions."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
LAB = CHECKOUT / "lab"

# Everything of the lab in the engine carries this label; what does not is never touched.
LABEL = "ai-platform.lab"
PREFIX = "ai-lab"
NETWORK = PREFIX
DOMAIN = "lab.internal"
DEFAULT_SUBNET = "10.89.77.0/24"

OLLAMA_VERSION = "0.17.4"
VAULT_VERSION = "1.21.0"
CONSUL_VERSION = "1.20.1"
POSTGRES_VERSION = "15.14"
KEYCLOAK_VERSION = "26.0.7"
QDRANT_VERSION = "v1.19.0-unprivileged"
OPENWEBUI_VERSION = "v0.12.4"
COREDNS_VERSION = "1.14.7"

FILE_PORT = 8000
REGISTRY_PORT = 5000


class LabError(Exception):
    """The lab cannot go on; the text says what, where and what to do next."""


def cache() -> Path:
    """The folder of all artifacts and of the lab's state; made where missing."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "ai-platform"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder(*parts: str) -> Path:
    """A folder below the cache; made where missing."""
    path = cache().joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def standing() -> Path:
    """Where the network of a lab is noted from the moment that it is made until all of the lab is removed."""
    return folder("lab") / "subnet"


def subnet() -> ipaddress.IPv4Network:
    """The lab's network: ``LAB_SUBNET``, or that of the lab that stands, or the default.

    Raises:
        LabError: the setting is no IPv4 network of at least 256 addresses.
    """
    noted = standing().read_text() if standing().exists() else ""
    text = os.environ.get("LAB_SUBNET") or noted or DEFAULT_SUBNET
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as err:
        raise LabError(f"LAB_SUBNET={text}: {err}. Expected something like {DEFAULT_SUBNET}") from err
    if network.prefixlen > 24:
        raise LabError(f"LAB_SUBNET={text}: the lab needs a network of at least 256 addresses, like {DEFAULT_SUBNET}")
    return network


def address(number: int) -> str:
    """The address with this number in the lab's network."""
    return str(subnet().network_address + number)
