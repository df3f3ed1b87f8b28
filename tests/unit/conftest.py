"""An Ollama that a test programs reply by reply."""

from __future__ import annotations

import ssl
import threading

import pytest
from pytest_httpserver import HTTPServer

from aiplatform import ollama, vault_tls


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


@pytest.fixture
def tls(tmp_path):
    """A server whose certificate an authority of its own signed; gives the server and the authority's file."""
    keys = vault_tls.new_key(), vault_tls.new_key()
    authority = vault_tls.authority(keys[0], "Test authority")
    signed = vault_tls.sign(vault_tls.request(keys[1], "server"), keys[0], authority, ["127.0.0.1"], 1)
    (tmp_path / "pem").write_text(signed + keys[1])
    (tmp_path / "ca").write_text(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    with HTTPServer(host="127.0.0.1", ssl_context=context) as server:
        yield server, str(tmp_path / "ca")
