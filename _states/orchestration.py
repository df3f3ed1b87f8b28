"""Steps of a deploy that run on the master."""

from __future__ import annotations

from typing import Any

from aiplatform import tables


def runner(name: str, **kwargs: Any) -> dict[str, Any]:
    """Call a runner function that reports its changes, in a dry run too.

    The function takes ``test`` and returns a mapping with ``changes``, ``comment``, and ``result`` as a state has
    it or ``retcode``; each may be left out. (Salt's own ``salt.runner`` reports a change at each run, and
    nothing in a dry run.)

    .. code-block:: yaml

        vault vault_server.bootstrap:
          orchestration.runner:
            - name: vault_server.bootstrap
            - require: [vault]
    """
    with tables.silent():
        out = __salt__["saltutil.runner"](name, full_return=True, test=bool(__opts__["test"]), **kwargs)
    return _state(name, out.get("return", out), bool(__opts__["test"]))


def _state(name: str, answer: Any, test: bool) -> dict[str, Any]:
    if not isinstance(answer, dict):
        return {"name": name, "result": False, "changes": {}, "comment": _last_line(answer)}
    content = answer.get("data", answer) if "outputter" in answer else answer
    changes = content.get("changes", {})
    good = content.get("result", True) is not False and not content.get("retcode", 0)
    result = None if good and test and changes else good
    return {"name": name, "result": result, "changes": changes, "comment": str(content.get("comment", ""))}


def _last_line(answer: Any) -> str:
    """Return what a runner that raised had to say: the end of its traceback."""
    lines = [line for line in str(answer).splitlines() if line.strip()]
    return lines[-1] if str(answer).startswith("Exception occurred") and lines else str(answer).strip()
