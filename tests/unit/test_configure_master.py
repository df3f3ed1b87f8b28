"""The script that makes a master, run whole with every path of the system below a folder of the test."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import CHECKOUT

FOLDERS = ("etc", "_utils", "_pillar", "_runners", "_modules", "_output")


def command(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def server(tmp_path):
    """A server with a checkout: ``configure()`` runs the script, ``commands`` are the stand-ins that it finds."""
    checkout, root, commands = tmp_path / "checkout", tmp_path / "root", tmp_path / "commands"
    for folder in FOLDERS:
        (checkout / folder).mkdir(parents=True)
    for folder in ("etc/systemd/system", "usr/local/bin"):
        (root / folder).mkdir(parents=True)
    (checkout / "etc/systemd").mkdir()
    (checkout / "salt/salt_minion/files").mkdir(parents=True)
    (checkout / "salt/salt_minion/files/logrotate").write_text("/var/log/salt/master {}")
    (checkout / "etc/systemd/salt-master.service").touch()
    command(root / "opt/salt-one/bin/python", "exit 0")
    command(root / "opt/salt-two/bin/python", "exit 0")
    (root / "opt/salt").symlink_to("salt-one")
    command(commands / "salt-run", "echo all as wanted")
    command(commands / "systemctl", "exit 0")
    script = checkout / "etc/configure-master.sh"
    text = (CHECKOUT / "etc/configure-master.sh").read_text()
    script.write_text(re.sub(r"(?<!\w)/(?=(etc|opt|usr|var)/)", f"{root}/", text))
    environment = {"PATH": f"{commands}:{os.environ['PATH']}"}

    def configure():
        return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)

    return SimpleNamespace(configure=configure, commands=commands, root=root)


def test_what_the_master_refuses_is_shown(server):
    command(server.commands / "salt-run", "echo 'platform.domian: is a.b, expected a known key'; exit 1")
    done = server.configure()
    assert done.returncode == 1
    assert "platform.domian" in done.stderr


def test_a_second_run_leaves_the_daemon_alone_and_says_so(server):
    first, second = server.configure(), server.configure()
    assert (first.stdout, first.stderr) == ("salt-master started\n", "")
    assert second.stdout == "salt-master runs with this configuration\n"
    assert (server.root / "etc/logrotate.d/salt").read_text() == "/var/log/salt/master {}"


def test_another_salt_is_used_from_now_on(server):
    server.configure()
    (server.root / "opt/salt").unlink()
    (server.root / "opt/salt").symlink_to("salt-two")
    assert server.configure().stdout == "salt-master started\n"
