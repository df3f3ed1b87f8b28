"""The lab's name server: what it answers, and what becomes of a zone edited by hand."""

from __future__ import annotations

import pytest

from aiplatform.wait import until

DOMAIN = "lab.internal"
ZONE = f"/docker_mounts/coredns/{DOMAIN}.db"


def query(master, name, kind="A", tcp=False):
    answer = master.salt("coredns_host", "coredns.query", name, kind, f"tcp={tcp}")["coredns_host"]
    return answer["code"], answer["answers"]


def apply(master) -> dict:
    answer = master.salt("coredns_host", "state.apply", "coredns")["coredns_host"]
    assert [row["comment"] for row in answer.values() if row["result"] is not True] == []
    return {key.split("_|-")[1]: row["changes"] for key, row in answer.items() if row["changes"]}


@pytest.mark.parametrize("tcp", [False, True])
def test_every_service_has_its_name(master, nginx_proxy, tcp):
    address = nginx_proxy.run("hostname -I").stdout.split()[0]
    names = set(master.salt("coredns_host", "coredns.records")["coredns_host"])
    assert {"vault", "ollama-api"} <= names
    for name in names:
        assert query(master, f"{name}.{DOMAIN}", tcp=tcp) == ("NOERROR", [address])
    assert query(master, f"nothing.{DOMAIN}", tcp=tcp)[0] == "NXDOMAIN"


def test_a_client_on_another_host_resolves_through_it(workstation):
    assert workstation.run(f"getent ahostsv4 vault.{DOMAIN}").stdout.split()[0]


def test_a_zone_edited_by_hand_keeps_its_records_and_the_container_runs_on(master, coredns_host):
    started = coredns_host.run("docker inspect -f '{{.Id}} {{.State.StartedAt}}' coredns").stdout
    before = coredns_host.run(f"cat {ZONE}").stdout
    coredns_host.run(f"sed -i '/^vault/d' {ZONE}; echo 'printer IN A 192.0.2.50 ; on the first floor' >> {ZONE}")
    try:
        assert set(apply(master)) == {"coredns-zone"}
        until(lambda: query(master, f"printer.{DOMAIN}") == ("NOERROR", ["192.0.2.50"]), 20, 0.5, "the new record")
        assert query(master, f"vault.{DOMAIN}")[0] == "NOERROR"
        assert "; on the first floor" in coredns_host.run(f"cat {ZONE}").stdout
    finally:
        coredns_host.run(f"sed -i '/^printer/d' {ZONE}")
    assert apply(master) == {}
    assert coredns_host.run("docker inspect -f '{{.Id}} {{.State.StartedAt}}' coredns").stdout == started
    assert len(coredns_host.run(f"cat {ZONE}").stdout) == len(before)


def test_a_broken_zone_is_refused_and_the_old_one_served_on(master, coredns_host):
    coredns_host.run(f"cp {ZONE} /tmp/zone.kept; echo 'broken IN A nowhere' >> {ZONE}")
    try:
        answer = master.salt("coredns_host", "state.apply", "coredns", check=False)["coredns_host"]
        failed = [row["comment"] for row in answer.values() if row["result"] is False]
        assert any("no zone" in text for text in failed)
        assert query(master, f"vault.{DOMAIN}")[0] == "NOERROR"
    finally:
        coredns_host.run(f"mv /tmp/zone.kept {ZONE}")
    assert apply(master) == {}


def test_the_program_has_the_capability_of_upstreams(coredns_host):
    """The kernel starts a program with a file's capability only where the container may have it."""
    pid = coredns_host.run("docker inspect -f '{{.State.Pid}}' coredns").stdout.strip()
    read = "import os; print(os.getxattr('coredns', 'security.capability').hex())"
    assert coredns_host.run(f'cd /proc/{pid}/root && python3 -c "{read}"').stdout.strip()


def test_a_container_removed_by_hand_comes_back(master, coredns_host):
    coredns_host.run("docker rm -f coredns")
    assert "coredns" in apply(master)
    assert query(master, f"vault.{DOMAIN}")[0] == "NOERROR"
    assert coredns_host.run("curl --silent http://127.0.0.1:8053/health").stdout == "OK"
