"""What the lab tells a person: the table of its hosts, and the summary when it is up."""

from __future__ import annotations

import json

import pytest

from lab import status, summary
from lab.settings import LabError
from lab.topology import HOSTS

ANSWERS = {
    "python3": json.dumps({"memory": 512 * 2**20, "cpu": 7.4}),
    "du": "1.1G\t/etc\n3.2G\ttotal\n",
    "salt-run": "slot-1  llama3.1:8b\n",
}
UNITS = "Id=vault.service\nLoadState=loaded\nActiveState=active\n\nId=x.service\nLoadState=not-found\n"


@pytest.fixture
def hosts(monkeypatch):
    """Hosts of which each runs; the list holds their containers."""

    def execute(host, *argv, **_kwargs):
        if argv[0] == "systemctl":
            return "running\n" if argv[1] == "is-system-running" else UNITS
        return ANSWERS[argv[0]]

    containers = [{"Name": f"/{host.container}", "State": {"Running": True}} for host in HOSTS]
    monkeypatch.delenv("LAB_SUBNET", raising=False)
    monkeypatch.setattr(status.machine, "engine_answers", lambda: True)
    monkeypatch.setattr(status, "listed", lambda: containers)
    for module in (status, summary):
        monkeypatch.setattr(module, "execute", execute)
    return containers


def test_the_table_has_what_each_host_is_and_uses(hosts):
    heads, *rows = status.table().splitlines()
    assert heads.split() == list(status.HEADS)
    assert [row.split()[0] for row in rows] == [host.name for host in HOSTS]
    name, address, *used = rows[2].split(maxsplit=2)
    assert (name, address) == ("ai_server", "10.89.77.100")
    assert used == ["running  512 MiB  7168 MiB  7 %  3.2G  vault active"]


def test_a_host_that_stopped_or_is_gone_is_a_row_too(hosts):
    hosts[0]["State"]["Running"] = False
    del hosts[1]
    rows = [row.split() for row in status.table().splitlines()]
    assert rows[1] == ["salt_master", "10.89.77.10", "stopped"]
    assert rows[2] == ["nginx_proxy", "10.89.77.30", "missing"]


def test_without_a_lab_the_way_to_one_is_told(hosts, monkeypatch):
    hosts.clear()
    for answers in (True, False):
        monkeypatch.setattr(status.machine, "engine_answers", lambda answers=answers: answers)
        with pytest.raises(LabError, match="make lab"):
            status.table()


@pytest.mark.parametrize(
    ("deployed", "next_"), [(True, "salt-run ai_platform.status"), (False, "salt-run ai_platform.deploy")]
)
def test_the_summary_has_addresses_slots_and_what_to_try_next(hosts, deployed, next_):
    text = summary.text(deployed)
    assert all(host.address in text for host in HOSTS)
    assert ("slot-1  llama3.1:8b" in text) is deployed
    assert text.count("python -m lab exec salt_master") == (3 if deployed else 2)
    assert next_ in text
