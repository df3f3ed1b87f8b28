"""PostgreSQL's roles and databases: what differs, and the statements that mend it. Pure: talks to no server.

A password never reaches the server: the role is given a verifier, by which the server can tell the right password
(SCRAM-SHA-256, RFC 5802), so that neither its log nor its statistics ever hold one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any

ITERATIONS = 4096
# What a role of an application is, by the column of pg_roles that says so.
ROLE = {"rolcanlogin": True, "rolsuper": False, "rolcreatedb": False, "rolcreaterole": False, "rolreplication": False}
_WORDS = {True: "{}", False: "NO{}"}
_ATTRIBUTES = {
    "rolcanlogin": "LOGIN",
    "rolsuper": "SUPERUSER",
    "rolcreatedb": "CREATEDB",
    "rolcreaterole": "CREATEROLE",
    "rolreplication": "REPLICATION",
}


def verifier(password: str, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """Return what PostgreSQL keeps of a password.

    salt
        Random where it is left out.
    iterations
        How often the password is hashed.
    """
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${iterations}:{_text(salt)}${_text(client)}:{_text(server)}"


def matches(password: str, kept: str | None) -> bool:
    """Return whether a password is the one that a verifier was made of."""
    try:
        scheme, first, _ = str(kept).split("$")
        iterations, salt = first.split(":")
        if scheme != "SCRAM-SHA-256":
            return False
        return hmac.compare_digest(verifier(password, base64.b64decode(salt), int(iterations)), str(kept))
    except ValueError:
        return False


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def role_changes(present: Mapping[str, Any] | None, password: str) -> dict[str, Any]:
    """Return what has to change about a role; of the password it is only said that it differs.

    present
        Its row of pg_roles with ``rolpassword`` of pg_authid, or None where there is no such role.
    """
    if present is None:
        return {"role": {"old": None, "new": "present"}}
    found = {key: {"old": present[key], "new": value} for key, value in ROLE.items() if present[key] != value}
    if not matches(password, present["rolpassword"]):
        found["password"] = {"old": "as before", "new": "changed"}
    return found


def role_statement(name: str, password: str, exists: bool) -> str:
    """Return the statement that makes a role as ``ROLE`` says, with the password's verifier.

    name
        The role's name, quoted for SQL.
    """
    attributes = " ".join(_WORDS[value].format(_ATTRIBUTES[key]) for key, value in ROLE.items())
    return f"{'ALTER' if exists else 'CREATE'} ROLE {name} WITH {attributes} PASSWORD '{verifier(password)}'"


def database_changes(present: Mapping[str, Any] | None, owner: str) -> dict[str, Any]:
    """Return what has to change about a database.

    present
        ``owner`` and ``public`` (whether everybody may connect), or None where there is no such database.
    """
    if present is None:
        return {"database": {"old": None, "new": f"owned by {owner}"}}
    wanted = {"owner": owner, "public": False}
    return {key: {"old": present[key], "new": value} for key, value in wanted.items() if present[key] != value}
