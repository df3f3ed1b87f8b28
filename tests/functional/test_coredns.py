"""The site's names by a real CoreDNS on loopback: what it answers, and how a change of the zone reaches it."""

from __future__ import annotations

import datetime
import signal
import urllib.request
from pathlib import Path

import dns.message
import dns.query
import jinja2
import pytest

from _modules import coredns as module
from _states import coredns as states
from aiplatform import services, settings, zone
from aiplatform.wait import until
from lab.artifacts import COREDNS
from tests.conftest import CHECKOUT
from tests.functional import local_server

DOMAIN = "acme.test"
PROXY = "192.0.2.30"


class LocalDns:
    """One process with its Corefile and zones in a folder."""

    def __init__(self, folder: Path, forwarders: list[str], domain: str = DOMAIN) -> None:
        self.program = local_server.program("CoreDNS", "AI_PLATFORM_COREDNS", COREDNS.unpacked / "coredns")
        self.folder, self.log, self.domain = folder, folder / "log", domain
        self.port, self.health, self.metrics = (local_server.free_port() for _ in range(3))
        own = settings.read_yaml(CHECKOUT / "salt/coredns/defaults.yaml")["coredns"]
        self.settings = own | {"forwarders": forwarders, "reload": "1s", "port": self.port, "zone_dir": str(folder)}

    def start(self) -> None:
        template = (CHECKOUT / "salt/coredns/files/Corefile").read_text()
        made = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template)  # noqa: S701 (no HTML)
        ports = {"port": self.port, "health_port": self.health, "metrics_port": self.metrics}
        text = made.render(coredns=self.settings, domain=self.domain, zones=str(self.folder), **ports)
        (self.folder / "Corefile").write_text(text)
        self.process = local_server.launch([self.program, "-conf", self.folder / "Corefile"], self.log)
        until(lambda: self.ask(f"vault.{self.domain}"), 20, 0.1, f"CoreDNS; its log: {self.log}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)

    def ask(self, name: str, kind: str = "A", tcp: bool = False):
        """``(code, answers)``; nothing where it does not answer."""
        ask = dns.query.tcp if tcp else dns.query.udp
        try:
            reply = ask(dns.message.make_query(name, kind), "127.0.0.1", port=self.port, timeout=2)
        except (OSError, dns.exception.DNSException):
            return ()
        return dns.rcode.to_text(reply.rcode()), [str(item) for data in reply.answer for item in data]


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A name server of the world outside, with a zone of its own."""
    folder = tmp_path_factory.mktemp("outside")
    server = LocalDns(folder, [])
    (folder / f"{DOMAIN}.db").write_text(
        "$TTL 60\n@ IN SOA ns h 1 1 1 1 1\n@ IN NS ns\nns IN A 192.0.2.1\nvault IN A 192.0.2.2\n"
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(tmp_path, monkeypatch):
    found = LocalDns(tmp_path, [])
    hosts = {
        "proxy": {"address": PROXY, "roles": ["nginx_proxy"]},
        "names": {"address": "127.0.0.1", "roles": ["coredns_host"]},
        "ai": {"address": "192.0.2.3", "roles": ["ai_server"]},
    }
    pillar = settings.effective({"platform": {"domain": DOMAIN, "hosts": hosts}}, CHECKOUT / "salt")
    pillar |= {"services": services.expand(pillar), "coredns": found.settings, "address": "127.0.0.1"}
    found.pillar = pillar
    salt = {f"coredns.{name}": getattr(module, name) for name in ("zone_changes", "write_zone", "wrong")}
    for target in (module, states):
        for name, value in {"__pillar__": pillar, "__salt__": salt, "__opts__": {"test": False}}.items():
            monkeypatch.setattr(target, name, value, raising=False)
    assert states.zone_current("zone")["changes"]
    found.start()
    yield found
    found.stop()


def test_it_answers_by_both_protocols_and_a_second_run_changes_nothing(server):
    assert states.answers("127.0.0.1", timeout=10)["result"] is True
    for tcp in (False, True):
        assert server.ask(f"ollama-api.{DOMAIN}", tcp=tcp) == ("NOERROR", [PROXY])
        assert server.ask(f"nothing.{DOMAIN}", tcp=tcp)[0] == "NXDOMAIN"
        assert server.ask("example.com", tcp=tcp)[0] == "REFUSED"
    assert states.zone_current("zone")["changes"] == {}


def test_a_change_is_served_without_a_restart(server):
    pid = server.process.pid
    server.pillar["platform"]["hosts"]["proxy"]["address"] = "192.0.2.31"
    server.pillar["services"]["wiki"] = server.pillar["services"]["vault"] | {"name": "wiki"}
    changes = states.zone_current("zone")["changes"]
    assert changes[f"wiki.{DOMAIN}"] == {"old": None, "new": ["192.0.2.31"]}
    assert changes[f"vault.{DOMAIN}"] == {"old": [PROXY], "new": ["192.0.2.31"]}
    assert states.answers("127.0.0.1", timeout=15)["result"] is True
    del server.pillar["services"]["wiki"]
    assert states.zone_current("zone")["changes"][f"wiki.{DOMAIN}"]["new"] is None
    until(lambda: server.ask(f"wiki.{DOMAIN}")[0] == "NXDOMAIN", 15, 0.2, "the name to go")
    assert server.process.poll() is None
    assert server.process.pid == pid


def test_a_zone_edited_by_hand_keeps_what_was_written(server):
    path = server.folder / f"{DOMAIN}.db"
    by_hand = path.read_text().replace(f"vault.{DOMAIN}. 3600 IN A {PROXY}", f"vault.{DOMAIN}. 3600 IN A 192.0.2.99")
    path.write_text(by_hand + "printer IN A 192.0.2.50\n")
    assert states.zone_current("zone")["changes"][f"vault.{DOMAIN}"]["new"] == [PROXY]
    until(lambda: server.ask(f"printer.{DOMAIN}") == ("NOERROR", ["192.0.2.50"]), 15, 0.2, "the record by hand")
    assert server.ask(f"vault.{DOMAIN}") == ("NOERROR", [PROXY])


def test_a_broken_zone_is_refused_and_the_old_one_served_on(server):
    path = server.folder / f"{DOMAIN}.db"
    good = path.read_text()
    serial = zone.serial(good, DOMAIN)
    path.write_text(good.replace(str(serial), str(serial + 1)) + "broken IN A not-an-address\n")
    refused = states.zone_current("zone")
    assert refused["result"] is False
    assert "no zone" in refused["comment"]
    until(lambda: "not-an-address" in server.log.read_text(), 15, 0.2, "CoreDNS to look at it")
    assert server.ask(f"vault.{DOMAIN}") == ("NOERROR", [PROXY])
    assert states.answers("127.0.0.1", timeout=1)["result"] is False


def test_health_and_figures(server):
    server.ask(f"vault.{DOMAIN}")
    for port, path, expected in ((server.health, "health", "OK"), (server.metrics, "metrics", "coredns_dns_requests")):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as reply:
            assert expected in reply.read().decode()


def test_other_names_are_asked_for_outside(outside, tmp_path):
    server = LocalDns(tmp_path, [f"127.0.0.1:{outside.port}"], domain="own.test")
    now = datetime.datetime.now(datetime.UTC)
    (tmp_path / "own.test.db").write_text(zone.edit("", "own.test", {"vault": [PROXY]}, ["127.0.0.1"], now))
    server.start()
    try:
        for tcp in (False, True):
            assert server.ask("vault.own.test", tcp=tcp) == ("NOERROR", [PROXY])
            assert server.ask(f"vault.{DOMAIN}", tcp=tcp) == ("NOERROR", ["192.0.2.2"])
    finally:
        server.stop()
