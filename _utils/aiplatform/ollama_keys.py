"""Keys of servers that are named by URL, such as the platform's own API: each in a file that root alone reads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiplatform.errors import PlatformError

_KEY = re.compile(r"[\x21-\x7e]+")
_OTHERS = 0o077


def key_for(settings: Mapping[str, Any], url: str) -> str | None:
    """Return the key of the server at a URL, by pillar ``ollama.api_keys``; None for one that has none there.

    Raises ``PlatformError`` where its file is not there, is not for its owner alone, or holds no key. What it holds is
    never in the message.
    """
    files = {_server(named): Path(path) for named, path in settings["ollama"].get("api_keys", {}).items()}
    path = files.get(_server(url))
    return None if path is None else _read(path)


def _server(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _read(path: Path) -> str:
    try:
        about, text = path.stat(), path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as err:
        raise _unusable(path, "a file with the key", err.strerror or str(err)) from err
    if about.st_mode & _OTHERS or about.st_uid != os.geteuid():
        raise _unusable(
            path, "a file of root with mode 0600", f"mode {about.st_mode & 0o7777:04o}, user {about.st_uid}"
        )
    if not _KEY.fullmatch(text):
        raise _unusable(path, "one key on one line", "something else")
    return text


def _unusable(path: Path, expected: str, actual: str) -> PlatformError:
    hint = "salt-run api_key.create makes a key for the platform's own API; pillar ollama.api_keys names the file"
    return PlatformError("The key cannot be used", where=str(path), expected=expected, actual=actual, hint=hint)
