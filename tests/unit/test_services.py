"""The one table of services."""

from __future__ import annotations

import socket
import socketserver
import threading
from functools import partial

import dns.message
import dns.rcode
import pytest

from aiplatform import plain_http, reach, services
from aiplatform import settings as settings_of

ROWS = {
    "vault": {
        "role": "ai_server",
        "port": "vault.port",
        "scheme": "https",
        "health": "/h",
        "reach": ["master", "nginx_proxy"],
    },
    "ollama": {
        "role": "ai_server",
        "each": "ollama.instances",
        "scheme": "http",
        "health": "/v",
        "reach": ["containers"],
    },
    "dns": {"role": "coredns_host", "port": 53, "scheme": "udp", "health": None, "reach": ["any"]},
}


@pytest.fixture
def settings():
    raw = {
        "vault": {"port": 8202},
        "ollama": {"instances": {"node1": {"port": 11434}, "node0": {"port": 11435}}},
        "platform": {
            "hosts": {
                "ai": {"address": "192.0.2.1", "roles": ["ai_server"]},
                "ai6": {"address": "2001:db8::1", "roles": ["ai_server"]},
                "proxy": {"address": "192.0.2.3", "roles": ["nginx_proxy"]},
                "dns": {"address": "192.0.2.4", "roles": ["coredns_host"]},
            }
        },
        "services": ROWS,
    }
    return raw | {"services": services.expand(raw)}


def test_ports_come_from_the_keys_that_an_operator_edits(settings):
    table = settings["services"]
    assert {name: row["port"] for name, row in table.items()} == {
        "vault": 8202,
        "ollama-node1": 11434,
        "ollama-node0": 11435,
        "dns": 53,
    }
    assert table["ollama-node0"]["port_key"] == "ollama.instances.node0.port"
    assert table["vault"]["port_key"] == "vault.port"


def test_expanding_twice_changes_nothing(settings):
    assert services.expand(settings) == settings["services"]


def test_a_formula_that_is_not_there_has_no_services(settings):
    rows = services.expand({**settings, "ollama": {}, "services": ROWS})
    assert set(rows) == {"vault", "dns"}


def test_every_service_stands_on_every_host_of_its_role(settings):
    found = {(end.service, end.host): end.url for end in services.endpoints(settings)}
    assert found["vault", "ai"] == "https://192.0.2.1:8202"
    assert found["vault", "ai6"] == "https://[2001:db8::1]:8202"
    assert len(found) == 7
    assert services.urls(settings)["dns"] == "udp://192.0.2.4:53"
    assert services.urls(settings)["vault@ai6"] == "https://[2001:db8::1]:8202"


def test_public_names_say_who_may_enter(settings):
    settings["platform"]["domain"] = "example.com"
    settings["services"]["vault"] |= {"name": "vault", "entry": "administrators"}
    assert services.sites(settings)[-1] == {"url": "https://vault.example.com", "entry": "administrators"}
    del settings["platform"]["hosts"]["proxy"]
    assert services.sites(settings) == []


@pytest.mark.parametrize(("named", "host"), [(None, "ai"), ("ai6", "ai6")])
def test_a_service_that_one_host_runs_is_expected_on_no_other(settings, named, host):
    settings["services"]["vault"]["only"] = "vault.host"
    settings["vault"]["host"] = named
    assert [end.host for end in services.endpoints(settings) if end.service == "vault"] == [host]
    assert services.problems(settings) == []


def test_of_several_servers_one_runs_what_there_is_once(checkout):
    hosts = {name: {"address": f"192.0.2.{number}", "roles": ["ai_server"]} for number, name in enumerate("ab", 1)}
    found = settings_of.effective({"platform": {"hosts": hosts}}, checkout / "salt")
    ends = services.endpoints(found | {"services": services.expand(found)})
    by_host = {host: {end.service for end in ends if end.host == host} for host in hosts}
    assert by_host["a"] - by_host["b"] == {"vault", "postgres", "keycloak", "qdrant", "openwebui"}
    assert by_host["b"] == {"ollama-node0", "ollama-node1"}


def test_a_service_cannot_run_on_a_host_without_its_role(settings):
    settings["services"]["vault"]["only"] = settings["services"]["ollama-node1"]["only"] = "vault.host"
    settings["vault"]["host"] = "proxy"
    assert [str(problem) for problem in services.problems(settings)] == [
        "vault.host: is 'proxy', expected a host with role ai_server: one of ai, ai6"
    ]


def test_a_port_that_no_key_holds_is_a_problem(settings):
    settings["services"]["vault"]["port"] = None
    assert [str(problem) for problem in services.problems(settings)] == [
        "vault.port: is None, expected a port, or the pillar key that holds one"
    ]


def test_a_port_taken_twice_on_one_host_is_a_problem(settings):
    settings["services"]["vault"]["port"] = 11434
    assert [problem.key for problem in services.problems(settings)] == ["ollama.instances.node1.port"]


def test_one_port_on_two_hosts_is_fine(settings):
    settings["services"]["dns"]["port"] = 8202
    assert services.problems(settings) == []


@pytest.mark.parametrize(
    ("host", "service", "answer", "ok"),
    [
        ("proxy", "vault", reach.ANSWERED, True),
        ("proxy", "vault", reach.REFUSED, False),
        ("dns", "vault", reach.REFUSED, True),
        ("dns", "vault", reach.ANSWERED, False),
        ("proxy", "ollama-node1", reach.ANSWERED, False),
        ("ai", "dns", reach.ANSWERED, True),
    ],
)
def test_reached_exactly_where_the_table_says_so(settings, host, service, answer, ok):
    end = next(end for end in services.endpoints(settings) if end.service == service)
    finding = reach.judged(settings, end, host, answer)
    assert finding.ok is ok
    assert finding.actual == answer


def test_a_host_tries_the_services_of_the_others(settings):
    names = set(reach.from_host(settings, "ai"))
    assert names == {"reach_vault_ai6", "reach_ollama-node1_ai6", "reach_ollama-node0_ai6", "reach_dns_dns"}
    assert reach.from_host(settings, "stranger") == {}
    # What speaks by UDP and is no name server need not answer at all.
    settings["services"]["log"] = settings["services"]["dns"] | {"role": "nginx_proxy", "port": 514}
    assert set(reach.from_host(settings, "ai")) == names


def test_connecting_for_real():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reach.connect("127.0.0.1", port, 2) == reach.ANSWERED
    assert reach.connect("127.0.0.1", port, 2) == reach.REFUSED


@pytest.fixture
def two(settings):
    """Ports of the host `proxy`, as the host `ai` tries them; returns how."""
    settings["platform"]["domain"] = "acme.test"
    settings["platform"]["hosts"]["proxy"]["address"] = "127.0.0.1"
    row = {"role": "nginx_proxy", "health": "/well", "process": "x", "name": "here"}

    def attempt(up, **more):
        settings["services"] = {"up": row | {"port": up, "scheme": "http", "reach": ["any"]} | more}
        settings["services"]["down"] = row | {"port": 1, "scheme": "http", "reach": ["any"]}
        ends = [end for end in services.endpoints(settings) if end.host == "proxy"]
        found = reach.try_all(settings, "ai", ends, 2)
        return {end.service: found[end.url] for end in ends}

    return attempt


def test_what_speaks_http_is_asked_and_any_answer_is_one(two, httpserver):
    by_name = {"Host": f"here.acme.test:{httpserver.port}"}
    httpserver.expect_request("/well", headers=by_name).respond_with_data("", status=503)
    assert two(httpserver.port) == {"up": reach.ANSWERED, "down": reach.REFUSED}
    assert httpserver.log[0][1].status_code == 503


def test_a_port_that_takes_connections_and_says_nothing_is_told(two, monkeypatch):
    monkeypatch.setattr(plain_http, "ask", partial(plain_http.ask, seconds=0.2))
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert two(server.getsockname()[1])["up"] == reach.MUTE


@pytest.mark.parametrize("more", [{"reach": []}, {"scheme": "tcp"}])
def test_what_should_be_closed_or_speaks_otherwise_is_tried_by_a_connection(two, more):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert two(server.getsockname()[1], **more)["up"] == reach.ANSWERED


class NameServer(socketserver.DatagramRequestHandler):
    """Refuses whatever it is asked, which is an answer."""

    def handle(self) -> None:
        reply = dns.message.make_response(dns.message.from_wire(self.rfile.read()))
        reply.set_rcode(dns.rcode.REFUSED)
        self.wfile.write(reply.to_wire())


@pytest.mark.parametrize(("answers", "expected"), [(True, reach.ANSWERED), (False, reach.REFUSED)])
def test_a_name_server_is_asked_by_udp(settings, answers, expected):
    settings["platform"]["domain"] = "acme.test"
    settings["platform"]["hosts"]["dns"]["address"] = "127.0.0.1"
    with socketserver.UDPServer(("127.0.0.1", 0), NameServer) as server:
        settings["services"]["dns"]["port"] = server.server_address[1]
        if answers:
            threading.Thread(target=server.handle_request, daemon=True).start()
        end = reach.from_host(settings, "proxy")["reach_dns_dns"]
        assert reach.try_all(settings, "proxy", [end], 5 if answers else 0.05) == {end.url: expected}


def test_no_port_at_all_is_no_fault(settings):
    assert reach.try_all(settings, "ai", [], 2) == {}
