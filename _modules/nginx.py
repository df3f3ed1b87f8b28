"""The TLS proxy on this host: what it should serve, its certificate, the API's keys, and what it has loaded."""

from __future__ import annotations

import datetime
import hashlib
import json
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError
from saltext.vault.utils import vault
from saltext.vault.utils.vault.exceptions import VaultException, VaultNotFoundError

from aiplatform import api_keys as keys
from aiplatform import proxy_tls, sites, vault_pki, vault_tls
from aiplatform.errors import PlatformError
from aiplatform.files import text_of, write_durably
from aiplatform.wait import until

CONFIG = Path(f"{sites.ETC}/nginx.conf")
KEYS = Path(f"{sites.FOLDER}/keys.json")
LUA = Path(f"{sites.FOLDER}/lua")
LOAD_SECONDS = 30
ASK_SECONDS = 15


def context() -> dict[str, Any]:
    """Return what the template of ``nginx.conf`` is filled with.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.context
    """
    return sites.context(__pillar__, __grains__["os_family"])


def routes() -> dict[str, Any]:
    """Return which Ollama instance answers for each name that the API offers.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.routes
    """
    return sites.routes(__pillar__)


# -- certificates -------------------------------------------------------------------------------------------------


def upstream_authority() -> str:
    """Return the certificate (PEM) of the authority that signs Vault's own address; empty where Vault is not known.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.upstream_authority
    """
    try:
        found = __salt__["vault.get_server_config"]()["verify"]
    except CommandExecutionError:
        if not __opts__["test"]:
            raise
        return ""
    return found if isinstance(found, str) else ""


def certificate_reason() -> str:
    """Say why the proxy needs another certificate; empty where the present one serves.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.certificate_reason
    """
    paths = [Path(path) for path in sites.certificate_paths(__pillar__)]
    certificate, key = (text_of(path) for path in paths)
    settings, names = __pillar__["nginx"]["certificate"], sites.names(__pillar__)
    if settings["mode"] == "files":
        unusable = proxy_tls.problem(certificate, key, names, datetime.datetime.now(datetime.UTC))
        return unusable or proxy_tls.untrusted(*paths, settings["authority"] or "")
    if not key:
        return "no key is in place"
    request = vault_tls.request(key, names[0])
    authority = __salt__["platform_ca.certificate"]()
    return vault_tls.renewal_reason(certificate, request, authority, names, settings["renew_days"])


def obtain_certificate() -> bool:
    """Have Vault sign a certificate for this host's key, which is made where absent and never leaves it.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.obtain_certificate
    """
    path, key_path = (Path(path) for path in sites.certificate_paths(__pillar__))
    if __pillar__["nginx"]["certificate"]["mode"] == "files":
        raise PlatformError(
            "The proxy's certificate cannot be used",
            where=f"{path} and {key_path}",
            expected=f"a certificate for {', '.join(sites.names(__pillar__))}, and its key",
            actual=certificate_reason(),
            hint="put both there; the certificate of an authority of your own belongs into pillar "
            "nginx:certificate:authority; or set nginx:certificate:mode to vault",
        )
    names = sites.names(__pillar__)
    path.parent.mkdir(parents=True, exist_ok=True)
    key = text_of(key_path) or vault_tls.new_key()
    write_durably(key_path, key.encode(), 0o600)
    signed = _signed(vault_tls.request(key, names[0]), names)
    if not vault_tls.matches(signed, key):
        raise PlatformError("Vault signed another key than this host's", where=str(path))
    write_durably(path, signed.encode(), 0o644)
    return True


def _signed(request: str, names: list[str]) -> str:
    wanted = {"csr": request, "common_name": names[0], "alt_names": ",".join(names)}
    try:
        reply = __salt__["vault.query"]("POST", f"{vault_pki.MOUNT}/sign/{vault_pki.ROLE}", payload=wanted)
    except CommandExecutionError as err:
        raise PlatformError(
            "Vault did not sign the proxy's certificate",
            where=f"Vault, {vault_pki.MOUNT}/sign/{vault_pki.ROLE}",
            expected=f"a certificate for {', '.join(names)}",
            actual=str(err),
            hint="salt-run vault_server.bootstrap tells Vault of a new name; salt-run vault_server.status",
        ) from err
    return f"{reply['data']['certificate'].strip()}\n"


def renew() -> str:
    """Get a new certificate where it is time, and have NGINX load what has changed. Returns what was done, or nothing.

    The timer ``ai-platform-certificate`` calls this every day; a certificate in files that was replaced is loaded too.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.renew
    """
    reason = certificate_reason()
    if reason:
        obtain_certificate()
    if loaded() == wanted():
        return ""
    reload()
    return f"a new certificate: {reason}" if reason else "loaded what had changed"


# -- the API's keys -----------------------------------------------------------------------------------------------


def api_keys() -> dict[str, Any]:
    """Return who may use the API: names and slots by the keys' hashes, from Vault.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.api_keys
    """
    own = _secret("ollama").get("api_key") or ""
    return keys.for_proxy(_secret(keys.PATH), own)


def _secret(path: str) -> dict[str, Any]:
    """Return what is at a path; only where nothing is there it is empty, not where Vault cannot be asked."""
    full = f"{__pillar__['vault']['mount']}/{__pillar__['platform']['slug']}/{path}"
    try:
        return dict(vault.read_kv(full, __opts__, __context__))
    except VaultNotFoundError:
        return {}
    except (VaultException, CommandExecutionError, OSError) as err:
        raise PlatformError(
            "The API's keys cannot be read", where=full, actual=str(err), hint="salt-run vault_server.status"
        ) from err


def api_keys_current() -> bool:
    """Whether the proxy's file has the keys that are in Vault.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.api_keys_current
    """
    return text_of(KEYS) == _written(api_keys())


def refresh_api_keys() -> bool:
    """Write the keys that are in Vault into the proxy's file.

    NGINX knows a new key at once and refuses a revoked one within half a second, without a reload.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.refresh_api_keys
    """
    group = __salt__["file.group_to_gid"](__pillar__["nginx"]["user"][__grains__["os_family"]])
    write_durably(KEYS, _written(api_keys()).encode(), 0o640, group=group)
    return True


def _written(rows: dict[str, Any]) -> str:
    return json.dumps(rows, indent=1, sort_keys=True) + "\n"


def presented(public: str) -> str:
    """Return the certificate (PEM) that this proxy presents for a public name, whoever signed it.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.presented vault.example.com
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection((__pillar__["address"], 443), ASK_SECONDS)
    with context.wrap_socket(plain, server_hostname=public) as wrapped:
        return ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True) or b"")


# -- what is loaded -----------------------------------------------------------------------------------------------


def wanted() -> str:
    """Return the digest of the files that NGINX should have loaded.

    They are the configuration with what is in ``conf.d``, the edge, the certificate, and the services' authorities.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.wanted
    """
    used = [Path(path) for path in (sites.certificate_paths(__pillar__)[0], *sites.authorities(__pillar__))]
    # In NGINX's own order; it leaves hidden files out.
    own = sorted(path for path in Path(sites.ETC).glob("conf.d/*.conf") if not path.name.startswith("."))
    files = [*own, CONFIG, LUA / "body.lua", LUA / "edge.lua", *used]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files if path.exists())).hexdigest()


def loaded() -> str:
    """Return the digest of the files that the running NGINX has loaded; empty where it does not answer.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.loaded
    """
    url = f"http://127.0.0.1:{__pillar__['nginx']['status_port']}/loaded"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as reply:
            return str(reply.read().decode().strip())
    except (urllib.error.URLError, OSError):
        return ""


def check(path: str = str(CONFIG)) -> bool:
    """Have NGINX test a configuration. Raises ``PlatformError`` with its words where it is refused.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.check
    """
    done = __salt__["cmd.run_all"](["nginx", "-t", "-q", "-c", path])
    if done["retcode"]:
        raise PlatformError(
            "NGINX refuses its configuration; the running one is untouched",
            where=path,
            expected="nginx -t passes",
            actual=done["stderr"],
            hint=f"mend what it names (in {sites.ETC}/conf.d, if it is your own), then apply the state nginx",
        )
    return True


def reload() -> bool:
    """Have NGINX load its files, after a test of them, and wait until it serves by them. No connection is dropped.

    CLI Example:

    .. code-block:: bash

        salt nginx_proxy nginx.reload
    """
    check()
    __salt__["service.reload"]("nginx")
    files = wanted()
    until(lambda: loaded() == files, LOAD_SECONDS, 0.1, f"NGINX to load {CONFIG}; see {sites.LOGS}/error.log")
    return True
