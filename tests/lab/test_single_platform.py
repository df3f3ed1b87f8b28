"""One bare server, which is what ``workstation`` is, becomes its own master with every role, and deploys to itself.

It has memory for the master, the minion and Vault; the phases after that are the same states everywhere.
"""

from __future__ import annotations

import json

import pytest
import yaml

from lab import deploy
from tests.lab.conftest import SPARE, changed_or_failed

CHECKOUT = deploy.TARGET


@pytest.fixture(scope="module")
def server(bare):
    """The server with this checkout, Salt, and a pillar that gives one host every role."""
    install(bare, pillar(["ai_server", "nginx_proxy", "coredns_host"]))
    return bare


def install(host, platform):
    """This checkout, its pillar and Salt, as an operator brings them to a bare server."""
    deploy.copy_tree(SPARE, [name for name in deploy.tree() if not name.startswith(("tests/", "lab/", "docs/"))])
    write(host, "artifacts", json.loads(deploy.artifacts_pillar().partition("\n")[2]))
    write(host, "top", {"base": {"*": ["artifacts", "platform"]}})
    write(host, "platform", platform)
    host.run(f"WHEELHOUSE=http://10.89.77.10:8000/wheels/ {CHECKOUT}/etc/install-single.sh /srv/pillar", 300)


def pillar(roles):
    return {
        "platform": {
            "domain": "one.internal",
            "master": {"address": SPARE.address},
            "hosts": {"ai_server": {"address": SPARE.address, "roles": roles}},
        },
        "ollama": {"api_port": 11434},
        "slots": {1: {}, 3: {}},
        "preflight": {"data_root_free_gb": 1, "data_root_mounted": False, "root_free_gb": 1},
    }


def write(host, name, data):
    text = yaml.safe_dump(data, width=500)
    host.run(["sh", "-c", 'mkdir -p /srv/pillar && printf %s "$1" > "/srv/pillar/$2.sls"', "sh", text, name])


def apply(server, *words):
    """``salt-call --local --id=ai_server state.apply platform.single``; returns its states."""
    command = ["salt-call", "--local", "--id=ai_server", "--out=json", "--log-level=quiet"]
    words = [*command, "state.apply", "platform.single", *words]
    done = server.run(["sh", "-c", f'cd {CHECKOUT} && exec "$@"', "sh", *words], timeout=300, check=False)
    rows = json.loads(done.stdout)["local"]
    assert isinstance(rows, dict), rows
    return rows


@pytest.fixture(scope="module")
def own(server):
    """The states that made it its own master."""
    return apply(server)


def test_a_pillar_that_leaves_a_role_out_is_refused_before_anything_changes(server):
    write(server, "platform", pillar(["ai_server"]))
    try:
        rows = apply(server)
    finally:
        write(server, "platform", pillar(["ai_server", "nginx_proxy", "coredns_host"]))
    row = next(row for key, row in rows.items() if "platform-single-roles" in key)
    assert row["result"] is False
    assert "expected: ai_server alone, with roles ai_server, nginx_proxy, coredns_host" in row["comment"]
    assert server.run("ls -d /etc/salt/minion.d", check=False).stdout == ""


def test_the_server_is_its_own_minion(own, server):
    assert not [row["comment"] for row in own.values() if row["result"] is not True]
    assert server.json(["salt-key", "--out=json", "-L"])["minions"] == ["ai_server"]
    assert server.json(["salt", "--out=json", "--static", "-t", "30", "*", "test.ping"]) == {"ai_server": True}


def test_a_second_run_changes_nothing(own, server):
    assert changed_or_failed(apply(server)) == {}


def test_vault_is_deployed_by_the_same_command_as_everywhere(own, server):
    server.run(["salt-run", "ai_platform.deploy", "phases=[preflight,vault]"], timeout=300)
    status = server.json(["salt-run", "--out=json", "vault_server.status"])
    assert (status["initialized"], status["sealed"]) == (True, False)
