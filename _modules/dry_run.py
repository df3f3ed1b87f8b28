"""What phases of a deploy would change on this host, by one dry run of them all."""

from __future__ import annotations

from typing import Any

from aiplatform import deploy, look


def phases(names: list[str] | dict[str, list[str]], digest: str = "") -> dict[str, Any]:
    """Return of each phase what is to be done on this host; touches nothing.

    names
        The states, in the order of the deploy; or those of each host, by minion id.
    digest
        Of the modules that this host has to have, or no dry run is made; any where it is left out.

    Returns ``phases``, by name ``states`` (how many), ``to_do`` (the ids of those that would change something or would
    fail), ``seconds`` and ``notices``; or ``reason``, where no dry run could be made.

    CLI Example:

    .. code-block:: bash

        salt ai_server dry_run.phases '[vault, docker]'
    """
    mine = names.get(__grains__["id"], []) if isinstance(names, dict) else names
    if digest and __salt__["data.get"](deploy.DIGEST) != digest:
        return {"reason": "it has other modules than this tree"}
    if __salt__["saltutil.is_running"]("state.*"):
        return {"reason": "other states run there"}
    # Salt itself tells of what does not compile by a list of errors.
    return look.sort(mine, __salt__["state.sls"](",".join(mine), test=True, concurrent=True))
