"""The platform as a whole: deploy it, ask how it is, verify it.

Each function prints a table to people and gives data with ``--out=json``; progress goes to the error stream.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import salt.client
import salt.key

from aiplatform import bootstrap as bootstrapping
from aiplatform import deploy as deploying
from aiplatform import (
    health,
    look,
    outcome,
    phases,
    pillar_edit,
    progress,
    rotation,
    schema,
    services,
    settings,
    tables,
    vault_master,
    verify_vault,
)
from aiplatform.checks import Finding
from aiplatform.errors import PlatformError


def deploy(
    phases: list[str] | str | None = None,
    limit: list[str] | str | None = None,
    test: bool = False,
    fresh: bool = False,
) -> dict[str, Any]:
    """Deploy the platform: the orchestration ``orch.deploy`` with its input checked, progress and a summary.

    phases
        The phases to run, as a list or separated by commas; all where it is left out.
    limit
        The hosts to run on, likewise.
    test
        Show what would change and touch nothing but Salt's own modules on the minions.
    fresh
        Run every phase. Without it those are left out that went well in a deploy of the same inputs that failed
        half-way and, after one that went well, those in which a dry run finds nothing to do.

    Exit code 0 where all phases went well, else 1.

    CLI Example:

    .. code-block:: bash

        salt-run ai_platform.deploy
        salt-run ai_platform.deploy phases=ollama,models limit=ai_server test=True
    """
    tables.hush()
    lock = deploying.Lock(Path(__opts__["cachedir"]))
    try:
        lock.take("ai_platform.deploy")
        return _deploy(_names(phases), _names(limit), bool(test), bool(fresh))
    except PlatformError as err:
        return _refused(err)
    finally:
        lock.release()


def bootstrap(
    host: str,
    user: str,
    minion_id: str = "",
    port: int = 22,
    priv: str = "",
    host_key: str = "",
    accept_new: bool = False,
) -> dict[str, Any]:
    """Turn a bare server with sshd and sudo into an accepted minion, over salt-ssh. A second run changes nothing.

    host
        The server's address, or its minion id in ``platform:hosts``.
    user
        The account to log in to: root, or one with sudo and no password.
    minion_id
        Its id; where it is left out, the entry of ``platform:hosts`` with that address.
    port
        sshd's port.
    priv
        File of the private key; empty for the agent's and the account's own.
    host_key
        The fingerprint of the server's host key, ``SHA256:...``; one of the two is needed on the first contact.
    accept_new
        Accept the host key of a server never met before, unseen.

    Exit code 0 where the minion answers, else 1.

    CLI Example:

    .. code-block:: bash

        salt-run ai_platform.bootstrap host=ai_server user=admin host_key=SHA256:...
    """
    try:
        data = bootstrapping.bootstrap(__opts__, host, user, minion_id, port, priv, host_key, accept_new)
    except PlatformError as err:
        return _refused(err)
    return tables.answer(__opts__, {"retcode": 0} | data, bootstrapping.summary(data))


def status() -> dict[str, Any]:
    """Show which hosts are up, how each service is, and what each slot has loaded.

    Exit code 0 where all is well, else 1.

    CLI Example:

    .. code-block:: bash

        salt-run ai_platform.status
        salt-run ai_platform.status --out=json
    """
    return _told(_status)


def verify() -> dict[str, Any]:
    """Make every check of every host, and the master's own: does the platform do what it is for?

    Exit code 0 where all checks passed, else 1.

    CLI Example:

    .. code-block:: bash

        salt-run ai_platform.verify
        salt-run ai_platform.verify --out=json
    """
    return _told(_verify)


def rotate(slot: int | str, model: str | None, force: bool = False, test: bool = False) -> dict[str, Any]:
    """Put another model into a rotating slot: writes it into the slots' pillar file and applies the phase ``models``.

    No request fails meanwhile: the new model is pulled, checked, loaded and asked for an answer before the slot's names
    move to it. Where any of that fails, the old one goes on serving, and the same command again carries on.

    slot
        5 or 6.
    model
        Its name with its tag; ``null`` gives the slot back to the benchmark's choice.
    force
        Take a model of the other kind, too.
    test
        Say whether it could be, and touch nothing.

    Refused before anything is written or pulled: a name that its registry does not know, a model that does not fit the
    node's memory beside what is loaded, weights that are in another slot, the wrong kind. Exit code 0 where it serves.

    CLI Example:

    .. code-block:: bash

        salt-run ai_platform.rotate slot=5 model=mistral:7b
        salt-run ai_platform.rotate slot=5 model=null
    """
    tables.hush()
    lock = deploying.Lock(Path(__opts__["cachedir"]))
    try:
        lock.take("ai_platform.rotate")
        answer = _rotate(*rotation.parse(slot, model), bool(force), bool(test))
    except PlatformError as err:
        return _refused(err)
    finally:
        lock.release()
    return tables.answer(__opts__, answer, rotation.text(answer))


def tend() -> dict[str, Any]:
    """Have every AI server load again what it should have loaded and has not; the reactor's answer to a cold slot.

    CLI Example:

    .. code-block:: bash

        salt-run ai_platform.tend
    """
    pillar = settings.load(__opts__)
    return _ask(services.hosts_of(pillar, "ai_server"), "model_slots.tend")


def _rotate(number: int, model: str | None, force: bool, test: bool) -> dict[str, Any]:
    pillar = settings.load(__opts__)
    wanted = rotation.wanted(pillar, number, model, force)
    path = pillar_edit.find(__opts__["pillar_roots"]["base"], number)
    hosts = services.hosts_of(pillar, "ai_server")
    given = {"slot": number, "model": model, "force": force}
    answers = _ask(hosts, "model_slots.misfits", given)
    refused = [f"{host}: {_why(answers.get(host))}" for host in hosts if answers.get(host) != []]
    if refused:
        raise PlatformError("The rotation is refused; nothing was changed:\n  " + "\n  ".join(refused))
    if test:
        return rotation.data(number, wanted, path, [{host: {} for host in hosts}], 0, 0, test=True)
    before, edited = path.read_text(encoding="utf-8"), time.time()
    pillar_edit.write(path, pillar_edit.slot_model(before, number, model, force))
    done = [_apply(hosts, "state.high", rotation.states(wanted, number))]
    if not any(outcome.failures_of("models", host, answer) for host, answer in done[0].items()):
        done.append(_apply(hosts, "state.apply", "models"))
    else:
        # A host refuses a wrong pillar as well, so its answer is not kept waiting for this look.
        try:
            settings.load(__opts__)
        except PlatformError:
            pillar_edit.write(path, before)
            raise
    # Outside of states a minion answers by the pillar it last got.
    _ask(hosts, "saltutil.refresh_pillar", {"wait": True})
    return rotation.data(number, wanted, path, done, edited, time.time())


def _apply(hosts: list[str], function: str, states: Any) -> dict[str, Any]:
    """Return each host's answer to a function that applies states; False for a host that is silent."""
    answers = __salt__["salt.execute"](hosts, function, [states], tgt_type="list")
    return {host: answers.get(host, False) for host in hosts}


def _why(answer: Any) -> str:
    """Return why a host refuses, of its list of problems or of what it said instead."""
    if answer is None:
        return "no answer: is salt-minion running there?"
    return "; ".join(map(str, answer)) if isinstance(answer, list) else str(answer).strip()


def _told(look: Callable[[dict[str, Any]], tuple[dict[str, Any], str]]) -> dict[str, Any]:
    """Return the answer to a question about the platform; ``look`` gets the pillar and returns data and text."""
    tables.hush()
    try:
        data, text = look(settings.load(__opts__))
    except PlatformError as err:
        return _refused(err)
    return tables.answer(__opts__, data, text)


def _status(pillar: dict[str, Any]) -> tuple[dict[str, Any], str]:
    hosts = list(pillar["platform"]["hosts"])
    up = _ask(hosts, "test.ping")
    servers = [name for name in services.hosts_of(pillar, "ai_server") if up.get(name)]
    data = {
        "hosts": {name: bool(up.get(name)) for name in hosts},
        "services": [health.probe(end, _trust(pillar)) for end in health.seen_by_master(pillar)],
        "slots": health.slot_rows(servers, _ask(servers, "model_slots.status")),
    }
    good = all(data["hosts"].values()) and all(row["ok"] for row in data["services"])
    data["retcode"] = int(not (good and all(row["loaded"] for row in data["slots"])))
    return data, health.status_text(data)


def _verify(pillar: dict[str, Any]) -> tuple[dict[str, Any], str]:
    hosts = list(pillar["platform"]["hosts"])
    answers = _ask(hosts, "verify.run")
    checks = [row for host in hosts if isinstance(answers.get(host), list) for row in answers[host]]
    checks += health.absent(hosts, answers)
    checks += [finding.on("master") for finding in _own_checks(pillar)]
    data = {"retcode": int(not all(row["ok"] for row in checks)), "checks": checks}
    return data, health.verify_text(data)


def _own_checks(pillar: dict[str, Any]) -> list[Finding]:
    """Return what the master itself finds out."""
    found = [health.latest_report(_report_folder(pillar))]
    if "keycloak" in pillar["services"]:
        found.append(verify_vault.administrators(__salt__["vault_oidc.configure"](test=True)))
    return found


def _ask(hosts: list[str], function: str, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return each host's answer to an execution function with these arguments; hosts that are silent are left out."""
    return __salt__["salt.execute"](hosts, function, tgt_type="list", kwarg=given) if hosts else {}


def _trust(pillar: dict[str, Any]) -> str:
    """Return the file with the authority of the platform's certificates; empty before it is made."""
    path = Path(pillar["vault"]["key_store"]) / vault_master.AUTHORITY
    return str(path) if path.is_file() else ""


def _report_folder(pillar: dict[str, Any]) -> Path:
    checkout = Path(__opts__["file_roots"]["base"][0]).parent
    return Path(pillar["benchmark"]["report_dir"] or checkout / "benchmarks" / "results")


def _deploy(only: list[str], limit: list[str], test: bool, fresh: bool) -> dict[str, Any]:
    pillar = settings.load(__opts__)
    graph = phases.load(phases.find(__opts__["file_roots"]["base"]), first=not pillar.get("selection"))
    record = deploying.Record(Path(__opts__["cachedir"]))
    inputs = deploying.fingerprint(pillar, [*__opts__["file_roots"]["base"], *__opts__.get("runner_dirs", [])])
    scope = deploying.Scope(inputs, limit, _keys(limit or list(pillar["platform"]["hosts"])))
    phases.check_names(only, graph, "phases")
    done = {} if only or test or fresh else record.done(scope)
    chosen = [name for name in only or graph if name not in done]
    steps = phases.plan(graph, pillar["platform"]["hosts"], chosen, limit)
    deploying.demand_keys(steps, _keys(list(pillar["platform"]["hosts"])))
    if done:
        _say(f"Carrying on; done before: {', '.join(done)} (fresh=True runs them again)")
    began = time.monotonic()
    complete = not test and record.begun()
    with progress.shown(__opts__, steps):
        # Who names phases wants them run: alone, they would not show what those that they need would change.
        idle = _idle(steps, graph) if complete and not only and not fresh else []
        settled = {row.phase for row in idle}
        left = [name for name in chosen if name not in settled]
        rows, failures = _orchestrate(graph, pillar, left, limit, test)
    data = {
        "retcode": int(bool(failures) or not all(row.good for row in rows)),
        "test": test,
        "resumed": list(done),
        "seconds": round(time.monotonic() - began, 1),
        "phases": outcome.as_data(outcome.in_order(steps, [*idle, *rows])),
        "failures": outcome.as_data(failures),
        "urls": services.urls(pillar),
        "sites": services.sites(pillar),
        "slots": health.chosen_slots(pillar | {"selection": settings.selection(__opts__["pillar_roots"]["base"])}),
    }
    if not test:
        failed = {row.phase for row in rows if not row.good}
        good = {row.phase for row in rows} - failed - {phases.MINIONS}
        # Where nothing but the verification failed, the hosts are as they should be.
        well = all(name in graph and graph[name].always for name in failed)
        _remember(record, scope, well, bool(only), complete, dict.fromkeys(good, time.time()) | done)
    return tables.answer(__opts__, data, outcome.summary(data))


def _remember(
    record: deploying.Record, scope: deploying.Scope, well: bool, narrowed: bool, complete: bool, done: dict[str, float]
) -> None:
    """Keep for the next run that all went well, or which phases did.

    narrowed, complete
        Whether this run was of some phases only, and whether the one before had gone well as a whole.
    """
    if well and (complete or not (narrowed or scope.limit)):
        record.succeeded()
    elif well and not narrowed:
        record.forget()
    elif not narrowed:
        record.failed(scope, done)


def _idle(steps: list[phases.Step], graph: dict[str, phases.Phase]) -> list[outcome.Row]:
    """Return how it is with the phases in which nothing is to be done, by one dry run on each host."""
    wanted = look.wanted(steps, graph)
    try:
        # Salt prints what keeps it from publishing a job.
        with contextlib.redirect_stdout(sys.stderr):
            answers, runners = _look(wanted, [step.name for step in steps if step.kind == phases.RUNNER])
    except Exception as err:  # noqa: BLE001 - a deploy does without it
        _say(f"No {look.NAME}, every phase is run: {err or type(err).__name__}")
        return []
    for host in wanted.keys() - answers:
        _say(f"No answer of {host} to the {look.NAME}: every phase of it is run")
    return look.idle(steps, graph, answers, runners)


def _look(wanted: dict[str, list[str]], functions: list[str]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Return the answers to the dry runs of hosts, and of each runner function whether it has nothing to do."""
    digest = deploying.modules_digest(__opts__["file_roots"]["base"])
    with salt.client.get_local_client(__opts__["conf_file"]) as client:
        job = client.run_job(list(wanted), look.FUNCTION, [wanted, digest], tgt_type="list", listen=True)
        if not job.get("jid"):
            raise PlatformError("The master has published no job")
        # What the master itself has to do is looked at while the hosts are at work.
        runners = {name: _nothing_to_do(name) for name in functions}
        # A host that is down is not awaited for as long as a phase awaits it: the first step of the deploy does that.
        limits = {"timeout": 5, "gather_job_timeout": 15}
        found = client.get_iter_returns(job["jid"], job["minions"], tgt=list(wanted), tgt_type="list", **limits)
        return {host: answer.get("ret") for row in found for host, answer in row.items()}, runners


def _nothing_to_do(name: str) -> bool:
    """Return whether the dry run of a runner function finds nothing to do."""
    try:
        with tables.silent():
            state = outcome.of_runner(name, __salt__[name](test=True), test=True)
    except Exception:  # noqa: BLE001 - it is run then, and says itself what is wrong
        return False
    finally:
        # Whatever it says of itself, the deploy has not failed.
        __context__.pop("retcode", None)
    return state["result"] is True


def _orchestrate(
    graph: dict[str, phases.Phase], pillar: dict[str, Any], chosen: list[str], limit: list[str], test: bool
) -> tuple[list[outcome.Row], list[outcome.Failure]]:
    """Run the orchestration of these phases, and return how each step went."""
    steps = phases.plan(graph, pillar["platform"]["hosts"], chosen, limit) if chosen else []
    if not steps:
        return [], []
    answer = __salt__["state.orchestrate"]("orch.deploy", test=test or None, pillar={"phases": chosen, "limit": limit})
    return outcome.rows(steps, outcome.by_id(answer))


def _keys(hosts: list[str]) -> dict[str, str]:
    """Return the fingerprint of each host's accepted key; hosts without one are left out."""
    accepted = salt.key.Key(__opts__).finger("*").get("minions", {})
    return {host: accepted[host] for host in hosts if host in accepted}


def _names(value: list[str] | str | None) -> list[str]:
    """Return names given as a list or as text with commas."""
    if not value:
        return []
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else [str(name) for name in value]


def _refused(err: PlatformError) -> dict[str, Any]:
    """Return the answer of a run that did not begin."""
    __context__["retcode"] = 1
    data = {"retcode": 1, "error": str(err)}
    if isinstance(err, settings.PillarError):
        text = f"The pillar is refused; nothing was run.\n\n{schema.as_table(err.problems)}"
        return tables.answer(__opts__, data | {"problems": err.problems}, text)
    return tables.answer(__opts__, data, f"Refused: {err}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
