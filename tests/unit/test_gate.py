"""The gate after a start, at the wire."""

from __future__ import annotations

import pytest

from aiplatform import gate
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


def test_one_that_cannot_list_its_models_does_not(httpserver):
    httpserver.expect_request("/api/version").respond_with_json({"version": "1.0.0"})
    httpserver.expect_request("/api/tags").respond_with_json({"error": "permission denied"}, status=500)
    with pytest.raises(PlatformError, match="permission denied"):
        gate.passed("main", httpserver.url_for("").rstrip("/"), "1.0.0", 5)


def test_silence_is_told_with_where_to_read_on():
    with pytest.raises(PlatformError, match=r"within 0\.2 s; where: .*journalctl -t ollama-main"):
        gate.passed("main", "http://127.0.0.1:9", "1.0.0", 0.2)


def test_one_that_keeps_ending_is_not_waited_for():
    with pytest.raises(PlatformError, match=r"keeps ending.*started 3 times"):
        gate.passed("main", "http://127.0.0.1:9", "1.0.0", 5, lambda: 3)


def test_one_that_keeps_ending_slowly_is_told_as_such_in_the_end():
    with pytest.raises(PlatformError, match=r"keeps ending.*started 1 times"):
        gate.passed("main", "http://127.0.0.1:9", "1.0.0", 0.2, lambda: 1)
