"""Who holds a port: real sockets of this process, and what the kernel says of a unit."""

from __future__ import annotations

import os
import socket

import pytest

from aiplatform import port_holders
from aiplatform.port_holders import Holder


@pytest.fixture
def listener():
    """A socket that listens on loopback, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_listener_where_the_service_could_not_listen_is_named(listener, address):
    (found,) = port_holders.holders(listener, address)
    assert (found.pid, found.address, found.port) == (os.getpid(), "127.0.0.1", listener)
    assert f"pid {os.getpid()}" in str(found)


def test_a_listener_on_another_address_is_in_nobodys_way(listener):
    assert port_holders.holders(listener, "192.0.2.9") == []


def test_a_listener_on_every_address_is():
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert port_holders.holders(server.getsockname()[1], "192.0.2.9")


def test_a_free_port_has_no_holder(listener):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    assert free != listener
    assert port_holders.holders(free, "0.0.0.0") == []


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/ollama-node0.service\n", "ollama-node0.service"),
        (
            "4:cpu:/docker/ab/system.slice/ollama.service\n1:name=systemd:/docker/ab/system.slice/ollama.service\n",
            "ollama.service",
        ),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
        ("", ""),
    ],
)
def test_the_unit_of_a_process(cgroup, unit):
    assert port_holders.unit_of(cgroup) == unit


NATIVE = Holder("::", 11434, 7, "ollama", "ollama.service")
PROXY = Holder("127.0.0.1", 11434, 9, "docker-proxy", "docker.service")


@pytest.mark.parametrize(
    ("found", "publishers", "words"),
    [
        ([], [], []),
        ([PROXY], ["ollama"], []),
        ([PROXY], ["web"], ["container web"]),
        ([], ["web"], ["container web"]),
        ([NATIVE], [], ["ollama (pid 7) of ollama.service on :::11434"]),
        # A proxy that Docker left behind.
        ([PROXY], [], ["docker-proxy (pid 9) of docker.service on 127.0.0.1:11434"]),
    ],
)
def test_only_its_own_container_may_have_the_port(found, publishers, words):
    assert port_holders.strangers(found, publishers, ["ollama"]) == words
