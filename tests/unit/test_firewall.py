"""The firewall's rules out of the table of services, judged by a small reading of them; by nft: functional tests."""

from __future__ import annotations

import copy
import ipaddress
import re
from unittest.mock import Mock

import pytest

from _modules import platform_firewall as module
from _states import platform_firewall as state
from aiplatform import firewall
from aiplatform.errors import PlatformError

SETTINGS = {
    "platform": {
        "master": {"address": "10.0.0.10"},
        "hosts": {
            "ai_server": {"address": "10.0.0.100", "roles": ["ai_server"]},
            "nginx_proxy": {"address": "10.0.0.30", "roles": ["nginx_proxy"]},
            "coredns_host": {"address": "fd00::29", "roles": ["coredns_host"]},
        },
    },
    "firewall": {"container_interfaces": ["docker0", "br-*"]},
    "containers": {"bridge": "br-platform"},
    "ollama": {"instances": {"node1": {"port": 11434}, "node0": {"port": 11435}}},
    "services": {
        "vault": {
            "role": "ai_server",
            "port": 8202,
            "scheme": "https",
            "health": "/v1/sys/health",
            "reach": ["master", "nginx_proxy", "coredns_host"],
        },
        "ollama": {
            "role": "ai_server",
            "each": "ollama.instances",
            "scheme": "http",
            "health": "/api/version",
            "reach": ["master", "nginx_proxy", "containers"],
        },
        "dns": {"role": "coredns_host", "port": 53, "scheme": "udp", "health": None, "reach": ["master"]},
        "web": {"role": "nginx_proxy", "port": 443, "scheme": "https", "health": "/", "reach": ["any"]},
    },
}


def verdict(rules, port, source="10.9.9.9", interface="eth0", protocol="tcp"):
    """What the chain decides about a new connection."""
    for rule in rules:
        words = rule.partition(" comment ")[0]
        name = re.search(r'iifname "([^"]+)"', words)
        matches = [
            not name or (interface.startswith(name[1][:-1]) if name[1].endswith("*") else interface == name[1]),
            "established" not in words,
            not (found := re.search(r"(tcp|udp) dport (\d+)", words)) or found.groups() == (protocol, str(port)),
            not (found := re.search(r"ip6? saddr \{ ([^}]+) \}", words)) or source in found[1].split(", "),
        ]
        if all(matches):
            return words.split()[-1]
    return "accept"


@pytest.mark.parametrize(
    ("port", "where", "expected"),
    [
        (8202, {"source": "10.0.0.10"}, "accept"),
        (8202, {"source": "10.0.0.30"}, "accept"),
        (8202, {"source": "fd00::29"}, "accept"),
        (8202, {"source": "10.0.0.99"}, "drop"),
        (8202, {"interface": "docker0"}, "drop"),
        (8202, {"interface": "lo"}, "accept"),
        (11434, {"source": "10.0.0.10"}, "accept"),
        (11435, {"source": "10.0.0.30"}, "accept"),
        (11434, {"source": "fd00::29"}, "drop"),
        (11434, {"source": "172.17.0.2", "interface": "docker0"}, "accept"),
        (11435, {"source": "172.18.0.2", "interface": "br-0123456789ab"}, "accept"),
        (11434, {"source": "192.168.1.7"}, "drop"),
        (22, {"source": "192.168.1.7"}, "accept"),
        (443, {"source": "192.168.1.7"}, "accept"),
        (53, {"protocol": "udp"}, "accept"),
    ],
)
def test_who_reaches_an_ai_server(port, where, expected):
    assert verdict(firewall.rules(SETTINGS, "ai_server"), port, **where) == expected


def test_each_host_guards_its_own_services_only():
    assert verdict(firewall.rules(SETTINGS, "coredns_host"), 53, protocol="udp") == "drop"
    assert verdict(firewall.rules(SETTINGS, "coredns_host"), 53, source="10.0.0.10", protocol="udp") == "accept"
    assert verdict(firewall.rules(SETTINGS, "coredns_host"), 11434) == "accept"
    assert verdict(firewall.rules(SETTINGS, "nginx_proxy"), 443) == "accept"


def test_a_further_server_guards_no_port_of_what_runs_once():
    settings = copy.deepcopy(SETTINGS)
    settings["platform"]["hosts"]["second"] = {"address": "10.0.0.101", "roles": ["ai_server"]}
    settings["services"]["vault"]["only"] = "vault.host"
    settings["vault"] = {"host": None}
    decided = {host: verdict(firewall.rules(settings, host), 8202) for host in ("ai_server", "second")}
    assert decided == {"ai_server": "drop", "second": "accept"}
    assert verdict(firewall.rules(settings, "second"), 11434) == "drop"


def test_networks_and_addresses_may_be_named_and_none_stands_twice():
    settings = copy.deepcopy(SETTINGS)
    named = ["master", "10.0.0.0/24", "192.0.2.7", "192.0.2.0/25", "fd00::/64", "containers"]
    settings["services"]["ollama"]["reach"] = named
    rules = [rule for rule in firewall.rules(settings, "ai_server") if "dport 11434" in rule]
    assert rules == [
        "ip saddr { 10.0.0.0/24, 192.0.2.0/25 } tcp dport 11434 accept",
        "ip6 saddr { fd00::/64 } tcp dport 11434 accept",
        'iifname "docker0" tcp dport 11434 accept',
        'iifname "br-*" tcp dport 11434 accept',
        'tcp dport 11434 drop comment "ollama-node1"',
    ]


def test_a_host_that_the_pillar_does_not_name_has_no_rule_about_ports():
    assert "dport" not in firewall.ruleset(SETTINGS, "stranger")


def forwarded(
    port, source="10.9.9.9", interface="eth0", out="br-platform", dnat=True, settings=SETTINGS, host="ai_server"
):
    """What the chain decides about a new connection that the host forwards."""
    for rule in firewall.forward_rules(settings, host):
        words = rule.partition(" comment ")[0]
        name = re.search(r'iifname "([^"]+)"', words)
        matches = [
            not name or (interface.startswith(name[1][:-1]) if name[1].endswith("*") else interface == name[1]),
            f'oifname "{out}"' in words,
            "established" not in words,
            "ct status dnat" not in words or dnat,
            not (found := re.search(r"l4proto (\w+) ct original proto-dst (\d+)", words))
            or found.groups() == ("tcp", str(port)),
            not (found := re.search(r"ip6? saddr \{ ([^}]+) \}", words)) or source in found[1].split(", "),
        ]
        if all(matches):
            return words.split()[-1]
    return "accept"


@pytest.mark.parametrize(
    ("port", "where", "expected"),
    [
        (8202, {"source": "10.0.0.30"}, "accept"),
        (8202, {"source": "10.0.0.99"}, "drop"),
        (8202, {"source": "10.0.0.30", "dnat": False}, "drop"),  # straight to a container's address
        (9999, {"source": "10.0.0.30"}, "drop"),  # published, and in no table
        (9999, {"interface": "br-platform", "source": "172.20.0.3"}, "accept"),  # among the containers
        (11434, {"interface": "br-0123456789ab", "source": "172.18.0.2"}, "accept"),
        (8202, {"interface": "br-0123456789ab", "source": "172.18.0.2"}, "drop"),
        (9999, {"out": "br-0123456789ab"}, "accept"),  # somebody else's containers
    ],
)
def test_who_is_forwarded_to_a_container(port, where, expected):
    assert forwarded(port, **where) == expected


def test_what_is_open_to_all_is_forwarded_from_anywhere():
    assert forwarded(443, host="nginx_proxy") == "accept"
    assert forwarded(443, host="nginx_proxy", dnat=False) == "drop"


@pytest.mark.parametrize(
    ("reach", "bridges", "expected"),
    [
        (["master", "containers"], ["docker0", "br-*"], True),
        (["master", "containers"], ["docker0"], False),  # named one by one, and not this one
        (["master", "10.0.0.0/24"], ["br-*"], False),
        (["172.16.0.0/12"], [], True),
        (["fd00::/8"], [], False),
        (["any"], [], True),
    ],
)
def test_whether_a_service_is_open_to_its_hosts_containers(reach, bridges, expected):
    settings = copy.deepcopy(SETTINGS)
    settings["services"]["ollama"]["reach"] = reach
    settings["firewall"]["container_interfaces"] = bridges
    assert firewall.lets_containers_in(settings, "ai_server", "ollama-node1", "172.20.0.0/16") is expected


def test_what_the_firewall_has_no_rule_about_is_open_to_containers():
    assert firewall.lets_containers_in(SETTINGS, "stranger", "ollama-node1", "172.20.0.0/16")


def test_without_a_masters_address_the_master_is_not_let_in():
    settings = copy.deepcopy(SETTINGS)
    settings["platform"]["master"]["address"] = None
    settings["services"]["vault"]["reach"] = ["master"]
    assert verdict(firewall.rules(settings, "ai_server"), 8202, source="10.0.0.10") == "drop"


def test_every_guarded_port_ends_with_a_drop():
    rules = firewall.rules(SETTINGS, "ai_server")
    for port in (8202, 11434, 11435):
        assert "drop" in [rule for rule in rules if f"dport {port} " in rule][-1]


def test_the_table_is_replaced_and_nothing_else_is_touched():
    text = firewall.ruleset(SETTINGS, "ai_server")
    assert "flush ruleset" not in text
    assert text.index("add table") < text.index("delete table") < text.index("table inet ai_platform {")
    assert set(re.findall(r"table (inet \S+|ip\S* \S+)", text)) == {"inet ai_platform"}
    assert "policy accept" in text


def test_the_digest_follows_the_rules():
    text = firewall.ruleset(SETTINGS, "ai_server")
    settings = copy.deepcopy(SETTINGS)
    settings["platform"]["hosts"]["nginx_proxy"]["address"] = "10.0.0.31"
    assert len(firewall.digest_of(text)) == 64
    assert firewall.digest_of(text) == firewall.digest_of(firewall.ruleset(SETTINGS, "ai_server"))
    assert firewall.digest_of(text) != firewall.digest_of(firewall.ruleset(settings, "ai_server"))
    assert firewall.digest_of("table inet ai_platform { }") == ""


def test_addresses_are_valid():
    for found in re.findall(r"saddr \{ ([^}]+) \}", firewall.ruleset(SETTINGS, "ai_server")):
        assert [ipaddress.ip_address(address) for address in found.split(", ")]


# -- module and state ---------------------------------------------------------------------------------------------


@pytest.fixture
def nft(monkeypatch):
    """The module on ai_server, with an nft that the test speaks for."""
    run = Mock(return_value={"retcode": 0, "stdout": "", "stderr": ""})
    functions = {"cmd.run_all": run, "cmd.which": lambda name: f"/usr/sbin/{name}"}
    monkeypatch.setattr(module, "__pillar__", SETTINGS, raising=False)
    monkeypatch.setattr(module, "__grains__", {"id": "ai_server"}, raising=False)
    monkeypatch.setattr(module, "__salt__", functions, raising=False)
    return run


def test_the_kernels_digest_is_read(nft):
    nft.return_value = {"retcode": 0, "stdout": module.ruleset(), "stderr": ""}
    assert module.loaded_digest() == module.digest() != ""
    nft.return_value = {"retcode": 1, "stdout": "", "stderr": "No such file or directory"}
    assert module.loaded_digest() == ""


def test_a_host_without_nft_has_no_rules(nft, monkeypatch):
    monkeypatch.setitem(module.__salt__, "cmd.which", lambda name: None)
    assert module.loaded_digest() == ""


def test_a_refusal_of_nft_is_an_error(nft):
    nft.return_value = {"retcode": 1, "stdout": "", "stderr": "syntax error"}
    with pytest.raises(PlatformError, match=r"the old ones stay; where: /x; actual: syntax error"):
        module.load("/x")


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize("current", ["", "old", "new"])
def test_rules_are_loaded_where_the_kernel_has_others(monkeypatch, test, current):
    load = Mock()
    functions = {"platform_firewall.loaded_digest": lambda: current, "platform_firewall.load": load}
    monkeypatch.setattr(state, "__salt__", functions, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    ret = state.loaded("/rules", "new")
    assert bool(ret["changes"]) is (current != "new")
    assert load.called is (current != "new" and not test)
    assert ret["result"] is (None if test and current != "new" else True)
