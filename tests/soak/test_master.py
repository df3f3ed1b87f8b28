"""``make master`` on a bare server: it has Salt, and the commands work from the checkout with no path to type."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lab import deploy
from tests.conftest import CHECKOUT as HERE
from tests.lab.conftest import SPARE

CHECKOUT = deploy.TARGET
# The lab's hosts reach no index: the same packages, and what some of them are built with, from a folder.
INSTALL = f"PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/wheels {CHECKOUT}/etc/install-master.sh"


@pytest.fixture(scope="module")
def server(bare, tmp_path_factory):
    """The server with this checkout, and its master installed."""
    folder = tmp_path_factory.mktemp("packages") / "wheels"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    subprocess.run([*download, "--require-hashes", "-r", HERE / "requirements/master.txt"], check=True)
    subprocess.run([*download, "setuptools", "wheel", "Cython"], check=True)
    subprocess.run(["docker", "cp", "--quiet", folder, f"{bare.container}:/srv/wheels"], check=True)
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


def test_a_deploy_without_minions_says_what_to_do(server):
    answer = server.run("salt-run --out=json ai_platform.deploy", check=False)
    assert answer.returncode == 1
    said = json.dumps(json.loads(answer.stdout))
    assert "ai_platform.bootstrap" in said
    assert "Traceback" not in answer.stdout + answer.stderr
