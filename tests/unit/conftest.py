"""An Ollama that a test programs reply by reply."""

from __future__ import annotations

import threading

import pytest

from aiplatform import ollama


@pytest.fixture
def client(httpserver):
    client = ollama.Client(httpserver.url_for("").rstrip("/"))
    yield client
    client.close()


@pytest.fixture
def hush():
    """A wait that ends with the test, so that the server is free for the next one."""
    release = threading.Event()
    yield lambda: release.wait(10)
    release.set()


@pytest.fixture
def chunked(monkeypatch):
    """Stream as Ollama does: HTTP/1.1, chunk by chunk."""
    monkeypatch.setattr("werkzeug.serving.WSGIRequestHandler.protocol_version", "HTTP/1.1")
