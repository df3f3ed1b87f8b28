"""Talking to a Vault server over its API, through hvac: state of the seal, initialisation, root rights for a moment."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import requests
from hvac.exceptions import Forbidden, InvalidRequest, VaultError

from aiplatform.errors import PlatformError

TIMEOUT = 15
# A root token lives no longer than this, even if the run that made it is killed.
ROOT_SECONDS = 900


class VaultUnreachableError(PlatformError):
    """No Vault answers at the address, or its certificate is not trusted."""


class VaultRefusedError(PlatformError):
    """Vault answered a request with an error."""


@dataclass(frozen=True)
class Seal:
    """What Vault says of itself without a login."""

    initialized: bool
    sealed: bool
    version: str
    cluster_id: str
    threshold: int


@contextmanager
def reported(doing: str, url: str) -> Iterator[None]:
    """Turn the errors of hvac and requests into the platform's, saying what was being done."""
    try:
        yield
    except requests.exceptions.SSLError as err:
        raise VaultUnreachableError(
            f"Vault's certificate is not trusted ({doing})",
            where=url,
            expected="a certificate of the platform's authority",
            actual=str(err),
            hint="run vault_server.bootstrap, which renews it",
        ) from err
    except requests.exceptions.RequestException as err:
        raise VaultUnreachableError(
            f"Vault does not answer ({doing})",
            where=url,
            expected="an answer of vault.service",
            actual=f"{type(err).__name__}",
            hint="look at `systemctl status vault` on its host and apply the state `vault` there",
        ) from err
    except VaultError as err:
        raise VaultRefusedError(f"Vault refused: {doing}", where=url, actual=str(err)) from err


def connect(url: str, trust: str | bool, token: str | None = None) -> hvac.Client:
    """Return a client.

    url
        ``https://address:port``.
    trust
        Path of the authority's certificate.
    token
        A Vault token, or None for what needs no login.

    Raises ``VaultUnreachableError`` where the authority was not made yet.
    """
    if isinstance(trust, str) and not Path(trust).is_file():
        raise VaultUnreachableError(
            "There is no authority yet that Vault's certificate could be checked against",
            where=trust,
            hint="run vault_server.bootstrap, which makes it",
        )
    session = requests.Session()
    # A proxy for the outside world must not come between the platform and its own Vault.
    session.trust_env, session.verify = False, trust
    client = hvac.Client(url=url, token=token or "", verify=trust, timeout=TIMEOUT, session=session)
    if not token:
        # hvac would otherwise pick up the token of whoever runs this.
        client.token = None
    return client


def seal(client: hvac.Client) -> Seal:
    """Return whether Vault is initialised and sealed. Raises ``VaultUnreachableError``."""
    with reported("asking for the state of the seal", client.url):
        status = client.sys.read_seal_status()
    return Seal(
        initialized=status["initialized"],
        sealed=status["sealed"],
        version=status["version"],
        cluster_id=status.get("cluster_id", ""),
        threshold=status["t"],
    )


def answers(client: hvac.Client) -> bool:
    """Whether a trusted Vault answers; for waiting."""
    try:
        seal(client)
    except (VaultUnreachableError, VaultRefusedError):
        return False
    return True


def initialize(client: hvac.Client, shares: int, threshold: int, pgp_keys: list[str]) -> dict[str, Any]:
    """Initialise Vault. The reply holds the key shares and the root token, and comes only once.

    pgp_keys
        Public keys (base64), one a share, that the shares are encrypted to; empty for plain shares.
    """
    with reported("initialising", client.url):
        return dict(client.sys.initialize(shares, threshold, pgp_keys=pgp_keys or None))


def unseal(client: hvac.Client, keys: list[str]) -> Seal:
    """Submit key shares until Vault is unsealed, and return the state of the seal.

    Raises ``VaultRefusedError`` where a share is not one of this Vault's.
    """
    state = seal(client)
    if not state.sealed:
        return state
    with reported("unsealing", client.url):
        # Shares that somebody submitted earlier and left would be counted with ours.
        client.sys.submit_unseal_key(reset=True)
        client.sys.submit_unseal_keys(keys[: state.threshold])
    return seal(client)


def token_works(url: str, trust: str | bool, token: str) -> bool:
    """Whether Vault accepts ``token``."""
    client = connect(url, trust, token)
    with reported("looking up a token", url):
        try:
            client.auth.token.lookup_self()
        except (Forbidden, InvalidRequest):
            return False
    return True


def log_in(url: str, trust: str | bool, role_id: str, secret_id: str, mount: str) -> hvac.Client | None:
    """Log in by AppRole. Returns None where Vault does not know this login."""
    client = connect(url, trust)
    with reported("logging in", url):
        try:
            client.auth.approle.login(role_id, secret_id, mount_point=mount)
        except (Forbidden, InvalidRequest):
            return None
        except VaultError as err:
            if "unsupported path" in str(err) or "no handler for route" in str(err):
                return None
            raise
    return client


@contextmanager
def root_for_a_moment(url: str, trust: str | bool, keys: list[str]) -> Iterator[hvac.Client]:
    """Give root rights made from key shares, and revoke them afterwards.

    The token that works inside expires by itself after ``ROOT_SECONDS``, should this process be killed.
    """
    anonymous = connect(url, trust)
    with reported("making a root token from the key shares", url):
        anonymous.sys.cancel_root_generation()
        attempt = anonymous.sys.start_root_token_generation()
        reply: dict[str, Any] = {}
        for key in keys[: attempt["required"]]:
            reply = anonymous.sys.generate_root(key, attempt["nonce"])
        first = connect(url, trust, _decoded(reply["encoded_token"], attempt["otp"]))
        try:
            limited = first.auth.token.create(
                policies=["root"], no_parent=True, ttl=ROOT_SECONDS, explicit_max_ttl=ROOT_SECONDS, renewable=False
            )
        finally:
            # It has no end of its own.
            first.auth.token.revoke_self()
    client = connect(url, trust, limited["auth"]["client_token"])
    try:
        yield client
    finally:
        revoke(client)


def revoke_endless_roots(root: hvac.Client) -> None:
    """Revoke every root token that has no end, such as one that a killed run had just made; ``root`` has its rights."""
    with reported("revoking root tokens", root.url):
        for accessor in root.auth.token.list_accessors()["data"]["keys"]:
            if _is_endless_root(root, accessor):
                root.auth.token.revoke_accessor(accessor)


def _is_endless_root(root: hvac.Client, accessor: str) -> bool:
    try:
        token = root.auth.token.lookup_accessor(accessor)["data"]
    except VaultError:
        return False  # it ended since it was listed
    return "root" in token["policies"] and not token["ttl"]


def revoke(client: hvac.Client) -> None:
    """Revoke the client's own token."""
    with reported("revoking a token", client.url):
        client.auth.token.revoke_self()


def _decoded(encoded: str, otp: str) -> str:
    raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    return bytes(a ^ b for a, b in zip(raw, otp.encode(), strict=True)).decode()
