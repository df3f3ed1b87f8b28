"""Steps of a deploy that run on the master."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import salt.utils.event

from aiplatform import checks, deploy, hostcheck, outcome, tables

# A minion that has other modules starts anew: its process keeps the Python packages that its beacons have imported, and
# every job inherits them. A moment later, so that this job still answers; without the accuracy systemd takes up to a
# minute for that moment.
RESTART = "systemd-run --quiet --on-active=1 --timer-property=AccuracySec=50ms systemctl restart salt-minion"
RESTART_SECONDS = 90


def minions(name: str, hosts: list[str]) -> dict[str, Any]:
    """Make sure that every minion answers, runs no states and has this tree's modules and states.

    States may still run for a deploy that ended before they did: its master was restarted, or it was killed. The
    phases of a deploy run beside others on purpose, so nothing else would keep a phase from running twice at once.

    ``state.apply`` of one formula brings no modules. All of ``saltutil.sync_all`` at each deploy would cost
    seconds, so a minion remembers what it has. A dry run brings them too, for it predicts by them, and says which
    minions would be restarted.

    hosts
        The minion ids.

    .. code-block:: yaml

        minions:
          orchestration.minions:
            - hosts: [ai_server]
    """
    wanted = deploy.modules_digest(__opts__["file_roots"]["base"])
    # One job for both questions: each costs a round trip in every deploy.
    answers = _ask(hosts, ["data.get", "saltutil.running"], [[deploy.DIGEST], []])
    running = {host: hostcheck.state_jobs(answer["saltutil.running"]) for host, answer in answers.items()}
    busy = [hostcheck.other_states(jobs).on(host) for host, jobs in running.items() if jobs]
    if busy:
        return {"name": name, "result": False, "changes": {}, "comment": "\n".join(map(checks.sentence, busy))}
    silent = [host for host in hosts if host not in running]
    behind = {host: bool(answer["data.get"]) for host, answer in answers.items() if answer["data.get"] != wanted}
    lost, waiting = _bring(behind, wanted) if behind else ([], [])
    lines = [checks.sentence(_no_answer().on(host)) for host in (*silent, *lost)]
    told = f"All answer; modules brought to {', '.join(behind) or 'none'}"
    told += f"; salt-minion would be restarted on {', '.join(waiting)}" if waiting else ""
    changed = waiting if __opts__["test"] else [host for host in behind if host not in lost]
    changes = dict.fromkeys(changed, "salt-minion to be restarted" if waiting else "modules synced")
    result = False if lines else None if waiting else True
    return {"name": name, "result": result, "changes": changes, "comment": "\n".join(lines) or told}


def _bring(behind: dict[str, bool], digest: str) -> tuple[list[str], list[str]]:
    """Bring the modules; returns the minions that do not answer, and those that a dry run leaves to be restarted.

    behind
        ``{minion: whether it has others}``.
    """
    # The master lists its files anew only every 20 seconds.
    __salt__["saltutil.runner"]("fileserver.clear_file_list_cache")
    synced = _ask(list(behind), "saltutil.sync_all")
    lost = [host for host in behind if host not in synced]
    older = _services([host for host in synced if behind[host]])
    # What a dry run does not restart still counts as behind, for the next run to do it.
    waiting, still_older = (older, []) if __opts__["test"] else ([], _restart(older))
    # Last: one that was not restarted, as where the deploy is killed before that, is behind for the next run too.
    _ask([host for host in synced if host not in (*waiting, *still_older)], "data.update", [deploy.DIGEST, digest])
    return [*lost, *still_older], waiting


def _ask(hosts: list[str], function: str | list[str], arguments: list[Any] | None = None) -> dict[str, Any]:
    """Return the answers of the minions that answer; of several functions, each answer is ``{function: answer}``."""
    if not hosts:
        return {}
    answers = __salt__["saltutil.cmd"](hosts, function, arg=arguments or [], tgt_type="list")
    return {host: answer["ret"] for host, answer in answers.items() if "ret" in answer and not answer.get("failed")}


def _services(hosts: list[str]) -> list[str]:
    """Return the minions that are a service of their host.

    Another one, as where somebody tries something out, is left to whoever started it.
    """
    found = _ask(hosts, "service.available", ["salt-minion"])
    return sorted(host for host in hosts if found.get(host) is True)


def _restart(hosts: Sequence[str]) -> list[str]:
    """Restart minions and wait for each to say that it has started; returns those that do not in time."""
    waited, end = set(hosts), time.monotonic() + RESTART_SECONDS
    if not waited:
        return []
    with salt.utils.event.get_event("master", opts=__opts__, listen=True) as events:
        _ask(sorted(waited), "cmd.run", [RESTART])
        while waited and time.monotonic() < end:
            event = events.get_event(wait=5, tag="salt/minion", full=True)
            if event and event["tag"].endswith("/start"):
                waited.discard(event["data"]["id"])
    return sorted(waited)


def _no_answer() -> checks.Finding:
    return checks.Finding(
        "the minion answers",
        ok=False,
        expected=f"an answer within {__opts__['timeout']} s",
        actual="none",
        hint="systemctl status salt-minion on the host; can it reach the master's ports 4505 and 4506?",
    )


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
    return outcome.of_runner(name, out.get("return", out), bool(__opts__["test"]))
