"""The authority that signs the platform's public names, and this host's trust in it."""

from __future__ import annotations

from pathlib import Path

from aiplatform import vault_pki
from aiplatform.errors import PlatformError
from aiplatform.files import text_of

FILE = Path("/etc/ai-platform/ca.pem")
# By family: where the host's own trust takes further authorities from, what then makes the bundle, and the bundle.
STORES = {
    "Debian": (
        Path("/usr/local/share/ca-certificates/ai-platform.crt"),
        ["update-ca-certificates"],
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    "RedHat": (
        Path("/etc/pki/ca-trust/source/anchors/ai-platform.crt"),
        ["update-ca-trust", "extract"],
        "/etc/pki/tls/certs/ca-bundle.crt",
    ),
}


def certificate() -> str:
    """Return the authority's certificate (PEM); empty where the public names have one of a public authority.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_ca.certificate --out=newline_values_only
    """
    settings = __pillar__["nginx"]["certificate"]
    if settings["mode"] != "vault":
        return f"{settings['authority'].strip()}\n" if settings["authority"] else ""
    reply = __salt__["vault.query"]("GET", f"{vault_pki.MOUNT}/cert/ca")
    found = reply["data"]["certificate"] if isinstance(reply, dict) else ""
    if not found:
        raise PlatformError(
            "Vault has no authority for the public names yet",
            where=f"Vault, {vault_pki.MOUNT}/cert/ca",
            hint="salt-run vault_server.bootstrap",
        )
    return f"{found.strip()}\n"


def bundle() -> str:
    """Return the path of this host's bundle of all trusted authorities; the platform's is in it.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_ca.bundle
    """
    return STORES[__grains__["os_family"]][2]


def trusted() -> bool:
    """Whether this host trusts the platform's authority, and no earlier one of its own.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_ca.trusted
    """
    wanted = certificate()
    anchor, _, store = STORES[__grains__["os_family"]]
    files = [text_of(FILE), text_of(anchor)]
    if not wanted:
        return files == ["", ""]
    return files == [wanted, wanted] and wanted.strip() in text_of(Path(store))


def trust() -> bool:
    """Have this host trust the platform's authority; where there is none of its own, take back what was trusted.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_ca.trust
    """
    wanted = certificate()
    anchor, command, _ = STORES[__grains__["os_family"]]
    for path in (FILE, anchor):
        if wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted)
            path.chmod(0o644)
        else:
            path.unlink(missing_ok=True)
    done = __salt__["cmd.run_all"](command)
    if done["retcode"]:
        raise PlatformError("The host's bundle of authorities was not made", where=command[0], actual=done["stderr"])
    return True
