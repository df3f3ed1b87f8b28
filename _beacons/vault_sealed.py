"""Tells the master that Vault on this host is sealed, as after each start of it.

The master's reactor then has it unsealed. The look is one small request on loopback.
"""

from __future__ import annotations

import logging
from typing import Any

import requests

CERTIFICATES = "/etc/vault.d/tls/vault.crt"
PORT = 8202

log = logging.getLogger(__name__)


def validate(config: list[dict[str, Any]]) -> tuple[bool, str]:
    """Check the beacon's configuration: an optional ``port``."""
    port = _options(config).get("port", PORT)
    if isinstance(port, int) and 0 < port < 65536:
        return True, "Valid beacon configuration"
    return False, f"port: expected a number from 1 to 65535, got {port!r}"


def beacon(config: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return an event where Vault is initialised and sealed.

    .. code-block:: yaml

        beacons:
          vault_sealed:
            - interval: 5
            - port: 8202
    """
    url = f"https://127.0.0.1:{_options(config).get('port', PORT)}/v1/sys/seal-status"
    try:
        # A proxy for the outside world, which the minion's environment may name, is none for loopback.
        status = requests.get(url, verify=CERTIFICATES, timeout=3, proxies={"no_proxy": "127.0.0.1"}).json()
    except (OSError, ValueError) as err:
        # A Vault that does not run is systemd's business; it is looked at again in a moment.
        log.debug("Vault's seal cannot be asked for: %s", err)
        return []
    if status.get("initialized") and status.get("sealed"):
        return [{"tag": "sealed"}]
    return []


def _options(config: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in config:
        merged |= part
    return merged
