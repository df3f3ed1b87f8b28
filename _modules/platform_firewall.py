"""The firewall of this host's platform ports: what it should be, and what the kernel has."""

from __future__ import annotations

from aiplatform import firewall
from aiplatform.errors import PlatformError


def ruleset() -> str:
    """Return the rules for this host, as nft reads them.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_firewall.ruleset
    """
    return firewall.ruleset(__pillar__, __grains__["id"])


def digest() -> str:
    """Return the digest of the rules that this host should have.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_firewall.digest
    """
    return firewall.digest_of(ruleset())


def lets_containers_in(service: str, subnet: str) -> bool:
    """Return whether the rules let the platform's containers on this host reach one of its services.

    service, subnet
        Its name in the table of services; the addresses of the containers' network.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_firewall.lets_containers_in ollama-node1 172.18.0.0/16
    """
    return firewall.lets_containers_in(__pillar__, __grains__["id"], service, subnet)


def loaded_digest() -> str:
    """Return the digest of the rules that the kernel has; empty where it has none.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_firewall.loaded_digest
    """
    command = __salt__["cmd.which"]("nft")
    if not command:
        return ""
    listing = __salt__["cmd.run_all"]([command, "list", "table", *firewall.TABLE.split()], ignore_retcode=True)
    return firewall.digest_of(listing["stdout"]) if listing["retcode"] == 0 else ""


def load(path: str) -> bool:
    """Load rules from a file, in one transaction.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_firewall.load /etc/nftables.d/ai_platform.nft
    """
    done = __salt__["cmd.run_all"](["nft", "--file", path])
    if done["retcode"]:
        raise PlatformError("nft refused the rules; the old ones stay", where=path, actual=done["stderr"])
    return True
