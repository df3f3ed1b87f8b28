"""A real Consul agent on the host reads the record that the formula writes: what it tells, by HTTP and by DNS.

Consul is no part of the platform, and its build takes minutes: so this is no part of ``make test``.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from aiplatform.wait import until
from lab import artifacts
from tests.lab.conftest import changed_or_failed
from tests.lab.test_single import PORT, installed, server

__all__ = ["installed", "server"]

RECORD = "/etc/consul.d/ollama-main.json"
# The lines of HashiCorp's own package that matter here; -dev: one server, in memory, on loopback.
UNIT = """\
[Unit]
Description=Consul
[Service]
ExecStart=/usr/local/bin/consul agent -dev -log-level=warn -config-dir=/etc/consul.d
ExecReload=/bin/kill --signal HUP $MAINPID
KillSignal=SIGTERM
[Install]
WantedBy=multi-user.target
"""


class Agent:
    """The agent, as those ask it who look for Ollama."""

    def __init__(self, host):
        self.host = host

    def passing(self):
        """The instances whose check passes: (id, port, tags)."""
        shown = self.host.run("curl -fsS '127.0.0.1:8500/v1/health/service/ollama?passing'").stdout
        found = [row["Service"] for row in json.loads(shown)]
        return [(row["ID"], row["Port"], row["Tags"]) for row in found]

    def checks(self):
        """The state of each check of Ollama's: passing, or critical."""
        shown = self.host.run("curl -fsS 127.0.0.1:8500/v1/health/checks/ollama").stdout
        return [row["Status"] for row in json.loads(shown)]

    def named(self):
        """The port that the agent's DNS names, and whether it names any."""
        script = (
            "import dns.resolver as d; r = d.Resolver(configure=False); r.nameservers = ['127.0.0.1']; r.port = 8600\n"
            "try: print(*[row.port for row in r.resolve('ollama.service.consul', 'SRV')])\n"
            "except d.NXDOMAIN: print('nobody')"
        )
        return self.host.run(["/opt/salt/bin/python", "-c", script]).stdout.strip()


@pytest.fixture(scope="module")
def agent(server, installed, bare):
    if artifacts.artifact_fresh(artifacts.CONSUL) is None:
        artifacts.obtain(artifacts.CONSUL)
    binary = artifacts.CONSUL.unpacked / "consul"
    subprocess.run(["docker", "cp", str(binary), f"{bare.container}:/usr/local/bin/consul"], check=True)
    bare.run(["sh", "-c", 'printf %s "$1" > /etc/systemd/system/consul.service', "sh", UNIT])
    bare.run("mkdir -p /etc/consul.d && systemctl daemon-reload && systemctl enable --now consul")
    found = Agent(bare)
    until(lambda: bare.run("curl -fsS 127.0.0.1:8500/v1/status/leader", check=False).stdout.strip() not in ("", '""'),
          60, 0.5, "the agent to lead")  # fmt: skip
    assert found.passing() == []
    return found


def test_the_agent_tells_of_the_instance_while_it_answers_and_as_long_as_pillar_wants(agent, server):
    server.pillar(discovery=["consul"])
    foreseen = set(changed_or_failed(server.apply("test=True")))
    made = server.apply()
    assert {key for key, row in made.items() if row["result"] is not True} == set()
    assert set(changed_or_failed(made)) == foreseen != set()
    until(lambda: agent.passing() == [("ollama-main", PORT, ["main"])], 30, 0.5, "the check to pass")
    assert agent.named() == str(PORT)
    assert changed_or_failed(server.apply()) == {}

    server.say("ollama.stop")
    until(lambda: agent.checks() == ["critical"], 30, 0.5, "the check to fail")
    assert agent.passing() == []
    assert agent.named() == "nobody"
    server.say("ollama.start")
    until(lambda: agent.passing() != [], 30, 0.5, "the check to pass again")

    server.pillar()
    gone = server.apply()
    assert {key for key, row in gone.items() if row["result"] is not True} == set()
    assert server.run(f"test -e {RECORD}", check=False).returncode == 1
    until(lambda: agent.checks() == [], 30, 0.5, "the agent to forget it")
    assert server.run("systemctl is-active consul").stdout.strip() == "active"
    assert changed_or_failed(server.apply()) == {}
