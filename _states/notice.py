"""What the operator should know of a run that went well."""

from __future__ import annotations

from typing import Any


def shown(name: str, text: str) -> dict[str, Any]:
    """Show a notice with the state, and below its phase's line of a deploy. Nothing is changed.

    .. code-block:: yaml

        bot-skipped:
          notice.shown:
            - text: There is no token, so there is no bot.
    """
    return {"name": name, "result": True, "changes": {}, "comment": text, "warnings": [text]}
