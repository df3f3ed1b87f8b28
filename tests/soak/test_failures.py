"""Servers killed while people and tools use the others, and what hands break: what goes on, says why, and heals.

``FAILURES`` names a folder for the results: ``failures.json`` and, made of it, the page ``failures.md``.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from aiplatform.wait import until
from tests.lab.test_browser import passwords
from tests.lab.test_edge import AUTHORITY, DOMAIN, client, key
from tests.soak import certificates, failure_report

__all__ = ["client", "key", "passwords"]

UNIT, THERE = "people-at-work", "/opt/people-at-work"
LOG = f"{THERE}/uses.jsonl"
FILES = [Path(__file__).parents[1] / "lab/sign_on.py", Path(__file__).with_name("people_at_work.py")]
RESOLVER = "10.89.77.29"
RESULTS = os.environ.get("FAILURES")
# Bounds: nothing takes longer to come back than Keycloak, whose JVM starts.
BACK_SECONDS, QUIET_SECONDS = 240, 4
PROCESS = {"container": "docker inspect --format '{{{{.State.Pid}}}}' {}", "unit": "systemctl show -P MainPID {}"}
KILL = {"container": f"kill -9 $({PROCESS['container']})", "unit": "systemctl kill --signal=KILL {}"}
PROXY = {"API, general", "API, coding", "chat", "documents", "signing on", "secrets"}


@dataclass(frozen=True)
class Kill:
    """What is killed, and which uses of the platform cannot go on meanwhile; all others must.

    ``process`` tells the number of its process: another one, once it has been started again.
    """

    name: str
    host: str
    process: str
    command: str
    stops: frozenset[str]
    heals: str


def killing(kind: str, name: str, more: str = "") -> tuple[str, str]:
    """The commands that tell a server's process, and that kill it."""
    return PROCESS[kind].format(name), KILL[kind].format(name) + more


KILLS = [
    Kill("Keycloak", "ai_server", *killing("container", "keycloak"), frozenset({"signing on"}), "Docker"),
    Kill(
        "PostgreSQL",
        "ai_server",
        *killing("container", "postgres"),
        frozenset({"signing on", "chat", "documents"}),
        "Docker; its clients connect again",
    ),
    Kill("Qdrant", "ai_server", *killing("container", "qdrant"), frozenset({"documents"}), "Docker"),
    Kill(
        "Vault",
        "ai_server",
        *killing("unit", "vault", " --kill-who=main"),
        frozenset({"secrets"}),
        "systemd; the master unseals it",
    ),
    Kill(
        "Ollama, node 1",
        "ai_server",
        *killing("unit", "ollama"),
        frozenset({"API, general", "chat", "documents"}),
        "systemd; the slots are loaded again",
    ),
    Kill("NGINX", "nginx_proxy", *killing("unit", "nginx"), frozenset(PROXY), "systemd"),
    Kill("CoreDNS", "coredns_host", *killing("container", "coredns"), frozenset({"names", "signing on"}), "Docker"),
]


class AtWork:
    """People and tools at the workstation, and how it goes for them."""

    def __init__(self, host) -> None:
        self.host = host

    def rows(self, since: float) -> list[dict]:
        lines = self.host.run(f"cat {LOG}").stdout.splitlines()
        # The last line may be under way.
        whole = (json.loads(line) for line in lines if line.startswith("{") and line.endswith("}"))
        return [row for row in whole if row["at"] >= since]

    def well(self, since: float) -> bool:
        """Whether every use went well some seconds on end, and none began before ``since``."""
        found: dict[str, list[dict]] = {}
        for row in self.rows(since):
            found.setdefault(row["use"], []).append(row)
        return len(found) == len(USES) and all(steady(rows) for rows in found.values())

    def settle(self) -> None:
        """Wait until all goes well."""
        since = time.time()
        until(lambda: self.well(since), BACK_SECONDS, 1, "people and tools to be at work")


USES = ("names", "API, general", "API, coding", "chat", "documents", "signing on", "secrets")


def steady(rows: list[dict]) -> bool:
    last_error = max((row["at"] for row in rows if row["error"]), default=rows[0]["at"])
    return not rows[-1]["error"] and rows[-1]["at"] - last_error >= QUIET_SECONDS


@pytest.fixture(scope="module")
def at_work(client, passwords, key) -> AtWork:
    """People and tools begin to work, and stop at the end."""
    client.run(f"systemctl stop {UNIT} 2>/dev/null; rm -rf {THERE}; mkdir -m 700 {THERE}", check=False)
    for file in FILES:
        subprocess.run(["docker", "cp", str(file), f"{client.container}:{THERE}/"], check=True, capture_output=True)
    order = {"person": "lab-user", "password": passwords["lab-user"], "key": key}
    order |= {"admin": "lab-admin", "admin_password": passwords["lab-admin"]}
    client.run(f"cat > {THERE}/order <<'ORDER'\n{json.dumps(order)}\nORDER")
    script = f"exec python3 {THERE}/people_at_work.py {DOMAIN} {AUTHORITY} {RESOLVER} < {THERE}/order > {LOG} 2>&1"
    client.run(["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "bash", "-c", script])
    found = AtWork(client)
    try:
        until(lambda: client.run(f"grep '\"use\"' {LOG}", check=False).stdout, 120, 1, "work to begin")
        yield found
    finally:
        client.run(f"systemctl stop {UNIT}; rm -rf {THERE}", check=False)


@pytest.fixture(scope="module")
def report():
    """``report(kind, row)`` keeps what a case came to; the page grows with each."""
    found: dict[str, list[dict]] = {"killed": [], "by hand": []}

    def keep(kind: str, row: dict) -> None:
        found[kind].append(row)
        if RESULTS:
            failure_report.write(Path(RESULTS), found)

    return keep


@pytest.fixture
def hosts(ai_server, nginx_proxy, coredns_host):
    return {"ai_server": ai_server, "nginx_proxy": nginx_proxy, "coredns_host": coredns_host}


def verified(master) -> dict:
    """What ``ai_platform.verify`` says: how many checks, and those that failed."""
    answer = master.runner("ai_platform.verify", check=False)
    failed = [f"{row['host']}: {row['check']}: {row['actual']}" for row in answer["checks"] if not row["ok"]]
    return {"checks": len(answer["checks"]), "failed": failed}


def loaded(master) -> bool:
    """Whether every slot has what it should."""
    rows = master.salt("ai_server", "model_slots.status")["ai_server"]
    return isinstance(rows, list) and all(row["loaded"] for row in rows if row["model"])


def told(rows: list[dict]) -> dict[str, dict]:
    """By use that failed: how often, its errors, and until when."""
    found: dict[str, dict] = {}
    for row in rows:
        if row["error"]:
            entry = found.setdefault(row["use"], {"failures": 0, "errors": [], "last": 0.0})
            entry["failures"] += 1
            entry["last"] = row["at"] + row["seconds"]
            if row["error"] not in entry["errors"]:
                entry["errors"].append(row["error"])
    return found


@pytest.mark.parametrize("case", KILLS, ids=lambda case: case.name)
def test_what_is_killed_comes_back_and_the_rest_goes_on(case, hosts, master, at_work, report):
    at_work.settle()
    before, killed = hosts[case.host].run(case.process).stdout, time.time()
    hosts[case.host].run(case.command)
    until(lambda: at_work.well(killed), BACK_SECONDS, 1, f"all to go well after {case.name} was killed")
    until(lambda: loaded(master), BACK_SECONDS, 1, "all slots loaded")
    failed = told(at_work.rows(killed))
    outage = max((entry["last"] for entry in failed.values()), default=killed) - killed
    checks = verified(master)
    report(
        "killed",
        {
            "what": case.name,
            "seconds": round(outage, 1),
            "healed_by": case.heals,
            "goes_on": [use for use in USES if use not in failed],
            "stops": {use: entry["errors"][:3] for use, entry in failed.items()},
            "verify": checks,
        },
    )
    assert set(failed) <= case.stops
    assert hosts[case.host].run(case.process).stdout != before, "it was not killed"
    # A query to a name server that is not there has no other answer.
    errors = [error for use, entry in failed.items() for error in entry["errors"] if use != "names"]
    assert not [error for error in errors if "timed out" in error], errors
    assert checks["failed"] == []


# -- what hands break ----------------------------------------------------------------------------------------------


@pytest.fixture
def noted(master, at_work, report):
    """``noted(what, answer, began, seconds)`` keeps how a case ended, once all goes well and the verification passed.

    Returns the uses that failed since it began, each with its errors.
    """

    def done(what: str, answer: str, began: float, seconds: float) -> dict[str, list[str]]:
        at_work.settle()
        failed, checks = told(at_work.rows(began)), verified(master)
        row = {"what": what, "answer": answer, "seconds": round(seconds, 1)}
        report("by hand", row | {"stops": sorted(failed), "verify": checks})
        assert checks["failed"] == []
        return {use: entry["errors"] for use, entry in failed.items()}

    return done


def apply(master, host: str, state: str, **pillar) -> list[dict]:
    """Apply a state; returns the rows that changed something or failed."""
    more = [f"pillar={json.dumps(pillar)}"] if pillar else []
    rows = master.salt(host, "state.apply", state, *more, check=False)[host]
    assert isinstance(rows, dict), rows
    return [row for row in rows.values() if row["changes"] or not row["result"]]


def good(rows: list[dict]) -> list[dict]:
    """The rows, none of which failed."""
    assert [row["comment"] for row in rows if not row["result"]] == []
    return rows


OWN, TLS = "/etc/nginx/ssl/own", "/etc/nginx/ai-platform/tls"


@contextmanager
def operators_files(master, nginx_proxy):
    """The proxy's pillar with certificates of the operator's own, at first those in use; then Vault's serve again."""
    nginx_proxy.run(f"mkdir -p {OWN} && cp -p {TLS}/proxy.crt {TLS}/proxy.key {OWN}/")
    authority = master.salt("nginx_proxy", "platform_ca.certificate")["nginx_proxy"]
    paths = {"certificate": f"{OWN}/proxy.crt", "key": f"{OWN}/proxy.key"}
    try:
        yield {"nginx": {"certificate": {"mode": "files", "authority": authority} | paths}}
    finally:
        good(apply(master, "nginx_proxy", "nginx"))
        nginx_proxy.run(f"rm -rf {OWN}")


def put(host, folder: str, pair: certificates.Pair) -> None:
    """Write a certificate and its key where a person would."""
    for name, text in (("key", pair.key), ("crt", pair.certificate)):
        host.run(f"cat > {folder}/proxy.{name} <<'PEM'\n{text}PEM")


def served(client) -> str:
    """The serial number of the certificate that clients are shown."""
    shown = f"openssl s_client -connect vault.{DOMAIN}:443 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    return client.run(shown).stdout


def test_a_new_certificate_is_served_and_nobody_notices(master, nginx_proxy, client, at_work, noted):
    at_work.settle()
    began = time.time()
    with operators_files(master, nginx_proxy) as pillar:
        good(apply(master, "nginx_proxy", "nginx", **pillar))
        before = served(client)
        nginx_proxy.run(f"rm {TLS}/proxy.crt")
        master.salt("nginx_proxy", "nginx.obtain_certificate")
        nginx_proxy.run(f"cp {TLS}/proxy.crt {TLS}/proxy.key {OWN}/")
        changed = time.time()
        good(apply(master, "nginx_proxy", "nginx", **pillar))
        ended = time.time()
        assert served(client) != before
    what = "a new certificate in the operator's files"
    assert noted(what, "served after a reload", began, ended - changed) == {}


@pytest.mark.parametrize(
    ("what", "make", "reason"),
    [
        ("an expired certificate in the operator's files", certificates.expired, "it has ended on"),
        ("one of an unknown issuer in the operator's files", certificates.stranger, "its issuer is not trusted"),
    ],
)
def test_a_bad_certificate_is_refused(master, nginx_proxy, client, at_work, noted, what, make, reason):
    at_work.settle()
    before, process, began = served(client), nginx_proxy.run("pgrep -o nginx").stdout, time.time()
    with operators_files(master, nginx_proxy) as pillar:
        put(nginx_proxy, OWN, make(DOMAIN))
        rows = apply(master, "nginx_proxy", "nginx", **pillar)
        ended = time.time()
        assert any(reason in row["comment"] for row in rows if not row["result"]), rows
        assert (served(client), nginx_proxy.run("pgrep -o nginx").stdout) == (before, process)
    assert noted(what, f"refused: {reason}", began, ended - began) == {}


@pytest.mark.parametrize("make", [certificates.expired, certificates.stranger], ids=lambda make: make.__name__)
def test_the_platforms_own_certificate_is_repaired(master, nginx_proxy, client, at_work, noted, make):
    at_work.settle()
    before, began = served(client), time.time()
    put(nginx_proxy, TLS, make(DOMAIN))
    good(apply(master, "nginx_proxy", "nginx"))
    ended = time.time()
    assert served(client) != before
    what = f"the platform's own certificate overwritten, {make.__name__}"
    assert noted(what, "repaired: Vault signs another", began, ended - began) == {}


ZONE = f"/docker_mounts/coredns/{DOMAIN}.db"


def test_a_zone_edited_by_hand_is_repaired_and_what_is_added_stays(master, coredns_host, at_work, noted):
    at_work.settle()
    began = time.time()
    coredns_host.run(f"sed -i '/^vault/d' {ZONE}; echo 'printer IN A 192.0.2.50' >> {ZONE}")
    try:
        good(apply(master, "coredns_host", "coredns"))
        ended = time.time()
        kept = coredns_host.run(f"cat {ZONE}").stdout
        assert "printer" in kept
        assert "\nvault" in kept
    finally:
        coredns_host.run(f"sed -i '/^printer/d' {ZONE}")
    what = "a record deleted from the zone's file, another added"
    assert noted(what, "repaired; both are served", began, ended - began) == {}


def test_a_broken_zone_is_refused(master, coredns_host, at_work, noted):
    at_work.settle()
    began = time.time()
    coredns_host.run(f"cp -p {ZONE} /tmp/zone.kept; echo 'broken IN A nowhere' >> {ZONE}")
    try:
        rows = apply(master, "coredns_host", "coredns")
        ended = time.time()
        assert any("no zone" in row["comment"] for row in rows if not row["result"]), rows
    finally:
        coredns_host.run(f"mv /tmp/zone.kept {ZONE}")
    good(apply(master, "coredns_host", "coredns"))
    assert noted("a zone's file that is no zone", "refused; the old one is served on", began, ended - began) == {}


REMOVED = {"postgres": "PostgreSQL", "keycloak": "Keycloak", "qdrant": "Qdrant", "openwebui": "", "coredns": "CoreDNS"}


@pytest.mark.parametrize("name", REMOVED)
def test_a_container_removed_by_hand_comes_back_with_all_it_had(name, master, hosts, at_work, noted):
    at_work.settle()
    stops = next((kill.stops for kill in KILLS if kill.name == REMOVED[name]), {"chat", "documents"})
    began = time.time()
    hosts["coredns_host" if name == "coredns" else "ai_server"].run(f"docker rm --force {name}")
    answer = master.runner("ai_platform.deploy", f"phases={name}")
    ended = time.time()
    assert answer["retcode"] == 0, answer["failures"]
    # People who had signed on are still so, and their document is found.
    assert set(noted(f"the container {name} removed", "made again by a deploy", began, ended - began)) <= stops
