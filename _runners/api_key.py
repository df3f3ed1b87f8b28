"""Keys of the Ollama API for tools and service accounts: make one, list them, revoke one.

A new key is given to a person once, in a file or on their terminal, and is in no answer, job cache or log. Vault and
the proxy keep its hash.
"""

from __future__ import annotations

import os
from typing import Any

from aiplatform import api_keys, services, settings, shown_once, sites, tables, vault_master, vault_pki
from aiplatform.errors import PlatformError

__func_alias__ = {"list_": "list"}
NO_PLACE = "There is no place to show the key, and none was made"


def create(name: str, slots: list[int | str] | int | str | None = None, file: str = "") -> dict[str, Any]:
    """Make a key.

    name
        Whose it is: small letters, digits, dots and dashes. It stands in the proxy's log beside each request.
    slots
        The slots that it may use, and names of aliases that have a model of their own: a list, or separated by
        commas. All where it is left out.
    file
        A new file on the master for the key, readable by its owner only; on the terminal where it is left out.

    CLI Example:

    .. code-block:: bash

        salt-run api_key.create ci-tests slots=3,4
        salt-run api_key.create wiki slots=1,embedding file=wiki.key
    """
    return tables.answered(__opts__, __context__, lambda: _create(name, _slots(slots), file))


def list_() -> dict[str, Any]:
    """List the keys: name, slots, day of birth. The platform's own key is not among them.

    CLI Example:

    .. code-block:: bash

        salt-run api_key.list
    """
    return tables.answered(__opts__, __context__, _list)


def revoke(name: str) -> dict[str, Any]:
    """Revoke a key; the proxy refuses it within a second of this answer.

    CLI Example:

    .. code-block:: bash

        salt-run api_key.revoke ci-tests
    """
    return tables.answered(__opts__, __context__, lambda: _revoke(name))


def _create(name: str, slots: list[int | str] | None, file: str) -> tuple[dict[str, Any], str]:
    pillar = settings.load(__opts__)
    key, row = api_keys.new(name, slots, sites.routes(pillar)["models"])
    # Opened before there is a key, so that none is made that nobody gets.
    place, handle = shown_once.place(file), shown_once.opened(file, NO_PLACE)
    try:
        _store(pillar).add(name, row)
    except PlatformError:
        os.close(handle)
        if file:
            place.unlink()
        raise
    with os.fdopen(handle, "w") as stream:
        stream.write(f"{key}\n")
    told = _refresh(pillar)
    data = {"retcode": int(bool(told)), "name": name, "slots": slots or "all", "file": file or None, "proxies": told}
    return data, f"Key {name} for slots {_listed(slots)}, in {place}. It is shown this once only.\n{_problem(told)}"


def _list() -> tuple[dict[str, Any], str]:
    rows = _store(settings.load(__opts__)).rows()
    listed = [(name, _listed(row.get("slots")), row.get("created", "")) for name, row in sorted(rows.items())]
    data = {name: {"slots": row.get("slots", "all"), "created": row.get("created", "")} for name, row in rows.items()}
    return {"retcode": 0, "keys": data}, tables.table(["key", "slots", "created"], listed) or "There are no keys."


def _revoke(name: str) -> tuple[dict[str, Any], str]:
    pillar = settings.load(__opts__)
    _store(pillar).remove(name)
    told = _refresh(pillar)
    return {"retcode": int(bool(told)), "name": name, "proxies": told}, f"Key {name} is revoked.\n{_problem(told)}"


def _store(pillar: dict[str, Any]) -> api_keys.Store:
    return api_keys.Store(vault_master.client(__opts__, pillar), pillar["vault"]["mount"], pillar["platform"]["slug"])


def _refresh(pillar: dict[str, Any]) -> dict[str, str]:
    """Have every proxy take the keys now; returns those that did not, with what they said."""
    proxies = list(services.hosts_of(pillar, vault_pki.PROXY))
    answers = __salt__["salt.execute"](proxies, "nginx.refresh_api_keys", tgt_type="list") if proxies else {}
    return {host: str(answers.get(host, "no answer")) for host in proxies if answers.get(host) is not True}


def _slots(value: list[int | str] | int | str | None) -> list[int | str] | None:
    """Return slots given as a list, a number or text with commas; numbers as numbers."""
    if value is None:
        return None
    parts = value if isinstance(value, list) else str(value).split(",")
    return [int(part) if str(part).strip().isdigit() else str(part).strip() for part in parts]


def _listed(slots: list[int | str] | None) -> str:
    return "all" if slots is None else ", ".join(map(str, slots))


def _problem(told: dict[str, str]) -> str:
    lines = [f"{host} does not know of it yet: {text}" for host, text in told.items()]
    return "\n".join([*lines, "Apply the state nginx there: salt <host> state.apply nginx"]) if lines else ""
