"""The doctor and the everyday operations on a real Ollama with a real model, natively."""

from __future__ import annotations

import os
import signal
from urllib.parse import urlsplit

import pytest

from _modules import ollama_doctor as doctor
from _modules import ollama_operations as operations
from aiplatform import instances, settings
from tests.conftest import CHECKOUT
from tests.functional.local_ollama import make_model, serving, weights

MODEL = "gemma:test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ollama")


@pytest.fixture(scope="module")
def client(folder):
    weights()
    with serving(folder) as client:
        make_model(client, MODEL)
        yield client


@pytest.fixture
def configure_loader_modules(client, folder, monkeypatch):
    """A host whose one unit is this process; its registry is closed, as that of a site without a way out."""
    merged = settings.effective({}, CHECKOUT / "salt")
    port = urlsplit(client.base_url).port
    merged["ollama"] |= {
        "api_host": "127.0.0.1",
        "models_dir": str(folder / "models"),
        "models": ["127.0.0.1:9/library/none:1"],
        "instances": {"main": {"port": port, "unit": "ollama.service", "numa_node": None}},
    }
    merged["models"]["insecure_registries"] = ["127.0.0.1:9"]
    functions = {
        "service.show": lambda unit: {"ActiveState": "active", "MainPID": str(client.process)},
        "platform_container.answers": lambda: False,
        "ollama.models_dir": lambda: instances.models_dir(merged),
        "gpu.found": list,
    }
    functions["ollama.store"] = operations.store
    shared = {"__pillar__": merged, "__salt__": functions, "__context__": {}}
    return {doctor: shared, operations: shared}


def entries(**arguments):
    return {row["check"]: row for row in doctor.doctor(out="json", **arguments)["entries"]}


def test_a_well_one_has_no_finding_but_the_registry_that_is_closed(client):
    found = entries()
    assert {name for name, row in found.items() if not row["ok"]} - {"slow generation", "out of memory"} == {
        "slow or failed download"
    }
    assert "does not answer" in found["slow or failed download"]["actual"]
    assert MODEL in found["slow generation"]["actual"]
    # Who listens is this very server.
    assert client.version() in found["refused from the host"]["actual"]


def test_the_same_weights_twice_are_found(client):
    client.copy(MODEL, "twin:1")
    try:
        assert entries()["duplicates"]["actual"] == f"{MODEL} = twin:1"
    finally:
        client.delete("twin:1")


def test_a_missing_model_is_named(client):
    found = entries(model="nobody:1")["a model does not load"]
    assert found["ok"] is False
    assert "nobody:1" in found["actual"]
    assert MODEL in found["actual"]


def test_one_that_does_not_answer_is_told_from_one_that_is_gone(client):
    """Stopped in its tracks it still listens."""
    os.kill(client.process, signal.SIGSTOP)
    try:
        found = entries(patience=1)["refused from the host"]
    finally:
        os.kill(client.process, signal.SIGCONT)
    assert found["ok"] is False
    assert f"pid {client.process}" in found["actual"]


def test_operations(client):
    assert operations.run(MODEL, "Hello", num_predict=4)
    used = operations.disk_use()
    assert used["models"] == [MODEL]
    assert used["bytes"] > 200_000_000
    assert operations.places()[0]["url"] == client.base_url
