"""The gate after a start, at the wire."""

from __future__ import annotations

import os

import pytest

from aiplatform import gate, port_holders
from aiplatform.errors import PlatformError


@pytest.fixture
def instance(httpserver):
    httpserver.expect_request("/api/version").respond_with_json({"version": "1.0.0"})
    httpserver.expect_request("/api/tags").respond_with_json({"models": []})
    return httpserver.url_for("").rstrip("/")


def test_an_instance_with_the_version_and_its_store_passes(instance):
    gate.passed("main", instance, "1.0.0", 5)


def test_another_version_does_not(instance):
    with pytest.raises(PlatformError, match=r"expected: 1\.1\.0; actual: 1\.0\.0"):
        gate.passed("main", instance, "1.1.0", 5)


def test_where_none_is_known_any_version_passes(instance):
    gate.passed("main", instance, "", 5)


def test_one_that_cannot_list_its_models_does_not(httpserver):
    httpserver.expect_request("/api/version").respond_with_json({"version": "1.0.0"})
    httpserver.expect_request("/api/tags").respond_with_json({"error": "permission denied"}, status=500)
    with pytest.raises(PlatformError, match="permission denied"):
        gate.passed("main", httpserver.url_for("").rstrip("/"), "1.0.0", 5)


def test_silence_is_told_with_where_to_read_on():
    with pytest.raises(PlatformError, match=r"within 0\.2 s; where: .*journalctl -t ollama-main"):
        gate.passed("main", "http://127.0.0.1:9", "1.0.0", 0.2)


def test_the_log_is_read_where_it_is():
    with pytest.raises(PlatformError, match=r"next: read its log on the host: docker logs --tail 100 ollama$"):
        gate.passed("local", "http://127.0.0.1:9", "1.0.0", 0.1, log_command="docker logs --tail 100 ollama")


def test_one_that_keeps_ending_is_not_waited_for():
    with pytest.raises(PlatformError, match=r"keeps ending.*started 3 times"):
        gate.passed("main", "http://127.0.0.1:9", "1.0.0", 5, lambda: 3)


def test_one_that_keeps_ending_slowly_is_told_as_such_in_the_end():
    with pytest.raises(PlatformError, match=r"keeps ending.*started 1 times"):
        gate.passed("main", "http://127.0.0.1:9", "1.0.0", 0.2, lambda: 1)


def holder(unit):
    return port_holders.Holder("0.0.0.0", 11434, 7, "ollama", unit)


def test_the_very_version_of_somebody_else_does_not_pass_for_the_unit(instance):
    with pytest.raises(PlatformError, match=rf"expected: ollama\.service; actual: held by .*\(pid {os.getpid()}\)"):
        gate.passed("main", instance.replace("localhost", "127.0.0.1"), "1.0.0", 5, unit="ollama.service")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "no process of this host listens there"),
        ([holder("ollama-node0.service")], r"of ollama-node0\.service on"),
        # The answer may be either one's.
        ([holder("ollama.service"), holder("docker.service")], r"of docker\.service on"),
    ],
)
def test_nor_does_that_of_another_unit(instance, monkeypatch, found, words):
    monkeypatch.setattr(port_holders, "holders", lambda port, address: found)
    with pytest.raises(PlatformError, match=words):
        gate.passed("main", instance, "1.0.0", 5, unit="ollama.service")


def test_the_unit_itself_passes(instance, monkeypatch):
    asked = []
    monkeypatch.setattr(port_holders, "holders", lambda *where: asked.append(where) or [holder("ollama.service")])
    gate.passed("main", instance, "1.0.0", 5, unit="ollama.service")
    assert asked == [(int(instance.rpartition(":")[2]), "localhost")]
