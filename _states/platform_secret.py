"""Files with secrets in them: read from Vault when they are written, so that no rendered state holds one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiplatform import containers
from aiplatform.errors import PlatformError
from aiplatform.secret_text import filled


def file(
    name: str, content: str = "", settings: Mapping[str, str] | None = None, mode: str = "0400", **kwargs: Any
) -> dict[str, Any]:
    """A file for one reader, with secrets in the place of ``{path:key}``; no return ever shows what it says.

    name
        The path.
    content
        The text; ``{path:key}`` is a secret of pillar ``vault:secrets``, ``{path:key|urlencode}`` one for a URL.
    settings
        In its place: ``{name: text}``, written as lines that a shell reads. An empty value is refused.
    mode, kwargs
        As ``file.managed`` has them: ``user``, ``group`` ...

    .. code-block:: yaml

        qdrant-secrets:
          platform_secret.file:
            - name: /etc/ai-platform/qdrant/secrets.env
            - settings: {QDRANT__SERVICE__API_KEY: "{qdrant:api_key}"}
            - user: 1000
            - group: 1000
    """
    read = __salt__["platform_secret.read"]
    try:
        texts = {key: filled(str(text), read) for key, text in (settings or {}).items()}
        text = containers.secrets_text(texts) if texts else filled(content, read)
    except PlatformError as err:
        return {"name": name, "result": False, "changes": {}, "comment": str(err)}
    done: dict[str, Any] = __states__["file.managed"](
        name, contents=text, contents_newline=bool(texts), mode=mode, show_changes=False, **kwargs
    )
    return done
