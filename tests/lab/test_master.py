"""``make master`` on a bare server: it has Salt, and the commands work from the checkout with no path to type."""

from __future__ import annotations

import json

import pytest

from lab import deploy
from tests.lab.conftest import SPARE

CHECKOUT = deploy.TARGET
WHEELS = "http://10.89.77.10:8000/wheels/"
# The site's packages in place of the index.
INSTALL = f"PIP_NO_INDEX=1 PIP_FIND_LINKS={WHEELS} PIP_TRUSTED_HOST=10.89.77.10 {CHECKOUT}/etc/install-master.sh"


@pytest.fixture(scope="module")
def server(bare):
    """The server with this checkout, and its master installed."""
    deploy.copy_tree(SPARE, [name for name in deploy.tree() if not name.startswith(("tests/", "lab/", "docs/"))])
    bare.run(INSTALL, timeout=500)
    return bare


def test_the_master_runs_and_a_second_run_changes_nothing(server):
    assert server.run("systemctl is-active salt-master; systemctl is-enabled salt-master").stdout == "active\nenabled\n"
    process = server.run("systemctl show -p MainPID salt-master").stdout
    assert "salt-master runs with this configuration" in server.run(INSTALL).stdout
    assert server.run("systemctl show -p MainPID salt-master").stdout == process


def test_the_commands_of_salt_work(server):
    assert server.json("salt-key --out=json -L")["minions"] == []
    assert server.json(f"cd {CHECKOUT} && salt-call --local --out=json test.ping") == {"local": True}
    assert server.run("salt --out=json '*' test.ping", check=False).returncode != 0


def test_a_deploy_without_minions_says_what_to_do(server):
    answer = server.run("salt-run --out=json ai_platform.deploy", check=False)
    assert answer.returncode == 1
    said = json.dumps(json.loads(answer.stdout))
    assert "ai_platform.bootstrap" in said
    assert "Traceback" not in answer.stdout + answer.stderr
