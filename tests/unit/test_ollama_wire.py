"""The wire to Ollama: time limits of each kind, replies that are no Ollama's, connections that are kept."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import pytest
import requests
from werkzeug import Response

from aiplatform import calling, ollama, ollama_errors, ollama_wire
from tests.unit.test_ollama_client import SHOW, body_of, in_turn, lines


def test_a_redirect_is_not_followed_and_says_where_to(httpserver):
    httpserver.expect_request("/api/show").respond_with_data("", status=307, headers={"Location": "http://other/api"})
    client = ollama.Client(httpserver.url_for(""), token="very-secret")
    with pytest.raises(ollama.Redirected, match="http://other/api"):
        client.show("m")
    assert len(httpserver.log) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(status, ollama.HtmlReply) for status in (200, 401, 404)] + [(status, ollama.Busy) for status in (429, 502, 504)],
)
def test_a_web_page_of_a_proxy(httpserver, client, status, kind):
    page = "<!DOCTYPE html><html><body>Sign in</body></html>"
    httpserver.expect_request("/api/tags").respond_with_data(page, status=status, content_type="text/html")
    with pytest.raises(kind) as caught:
        client.tags()
    assert "proxy" in str(caught.value) or status == 200
    assert "Sign in" not in str(caught.value) or status == 200


@pytest.mark.parametrize("name", sorted(set(ollama.__all__) & set(vars(ollama_errors))))
def test_every_error_says_what_to_do_next(name):
    if isinstance(kind := getattr(ollama, name), type):
        assert kind("It went wrong").hint


def test_no_connection_says_where_to_look(client, monkeypatch):
    late = Mock(side_effect=requests.ConnectTimeout())
    monkeypatch.setattr(requests.Session, "request", late)
    with pytest.raises(ollama.InstanceDown, match=r"within 0\.5 s.*next: .*firewall"):
        client.version(ollama.Limits(connect=3, total=0.5))


def test_a_certificate_that_is_not_trusted_has_a_name(tls):
    server, authority = tls
    server.expect_request("/api/version").respond_with_json({"version": "1"})
    url = server.url_for("").rstrip("/")
    assert ollama.Client(url, verify=authority).version() == "1"
    client = ollama.Client(url)
    with pytest.raises(ollama.TlsFailed, match=r"an authority in .*cacert\.pem; actual: .*CERTIFICATE_VERIFY_FAILED"):
        client.health()


def test_a_server_without_tls_is_not_asked_for_it_again(httpserver, caplog):
    client = ollama.Client(f"https://127.0.0.1:{httpserver.port}")
    with pytest.raises(ollama.TlsFailed, match=r"next: .*http://"):
        calling.Caller(client).generate("m", "p")
    assert "Try 1" not in caplog.text


@pytest.mark.parametrize("bound", ["LINE_BYTES", "REPLY_BYTES"])
def test_a_gigantic_reply_is_given_up(httpserver, chunked, client, monkeypatch, bound):
    monkeypatch.setattr(ollama_wire, bound, 1000)
    sent = []

    def endless():
        for _ in range(100_000):
            sent.append(1)
            yield b"x" * 500

    httpserver.expect_request("/api/generate").respond_with_handler(lambda _: Response(endless()))
    httpserver.expect_request("/api/tags").respond_with_handler(lambda _: Response(endless()))
    with pytest.raises(ollama.TooLong):
        list(client.generate("m", "p")) if bound == "LINE_BYTES" else client.tags()
    assert len(sent) < 50_000


@pytest.mark.parametrize(
    "piece",
    [
        {"response": 1},
        {"response": None},
        {"message": "x"},
        {"message": {"content": ["x"]}},
        {"done": "yes"},
        {"done": True, "eval_count": "7"},
        {"done": True, "eval_duration": -1},
        {"done": True, "prompt_eval_count": 1.5},
    ],
)
def test_wrong_types_in_an_answer(httpserver, client, piece):
    httpserver.expect_request("/api/generate").respond_with_data(lines(piece, {"done": True}))
    with pytest.raises(ollama.BadReply, match="expected"):
        list(client.generate("m", "p"))


@pytest.mark.parametrize("rows", [["m"], [{"model": "m"}], [{"name": 7}], {"name": "m"}])
def test_wrong_types_in_a_list_of_models(httpserver, client, rows):
    httpserver.expect_request("/api/tags").respond_with_json({"models": rows})
    with pytest.raises(ollama.BadReply, match="expected"):
        client.tags()


@pytest.mark.parametrize("vectors", [["x"], [["x"]], [[None]]])
def test_wrong_types_in_vectors(httpserver, client, vectors):
    httpserver.expect_request("/api/embed").respond_with_json({"embeddings": vectors})
    with pytest.raises(ollama.BadReply, match="numbers"):
        client.embed("m", ["a"])


def test_the_first_piece_has_a_limit_of_its_own(httpserver, chunked, client, hush):
    def late():
        hush()
        yield lines({"done": True})

    httpserver.expect_request("/api/generate").respond_with_handler(lambda _: Response(late()))
    with pytest.raises(ollama.Timeout, match=r"Silent for 0\.2 s"):
        list(client.generate("m", "p", limits=ollama.Limits(read=30, first=0.2)))


def test_after_the_first_piece_the_silence_counts(httpserver, chunked, client):
    def slow():
        yield lines({"response": "a"})
        time.sleep(0.4)
        yield lines({"done": True})

    httpserver.expect_request("/api/generate").respond_with_handler(lambda _: Response(slow()))
    chunks = list(client.generate("m", "p", limits=ollama.Limits(read=5, first=0.2)))
    assert chunks[-1].data == {"done": True}


def test_a_silent_stream_ends_at_its_total(httpserver, chunked, client, hush):
    def silent():
        yield lines({"response": "a"})
        hush()

    httpserver.expect_request("/api/generate").respond_with_handler(lambda _: Response(silent()))
    started = time.monotonic()
    with pytest.raises(ollama.Timeout, match=r"Not complete after 0\.4 s"):
        list(client.generate("m", "p", limits=ollama.Limits(read=30, total=0.4)))
    assert time.monotonic() - started < 2


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def spoken(hush):
    """A server that says some bytes at once, then one byte after the other without end; gives the client of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(begin, byte):
            with server.accept()[0] as peer, contextlib.suppress(OSError):
                peer.recv(65536)
                peer.sendall(begin)
                while byte and not over.wait(0.02):
                    peer.sendall(byte)
                hush()

        def start(begin, byte=b""):
            threading.Thread(target=serve, args=(begin, byte), daemon=True).start()
            return ollama.Client(f"http://127.0.0.1:{server.getsockname()[1]}")

        over = threading.Event()
        yield start
        over.set()


@pytest.mark.parametrize(
    ("begin", "byte"),
    [
        (b"HTTP/1.1 200 O", b"K"),
        (HEAD + b"Server: ", b"x"),
        (HEAD + CHUNKS, b"0"),
        (HEAD + CHUNKS + b"fff\r\n", b"x"),
        (HEAD + b"Content-Length: 4095\r\n\r\n", b"x"),
        (HEAD + b"\r\n", b"x"),
    ],
    ids=["status", "header", "chunk size", "chunk", "length", "until closed"],
)
def test_what_trickles_ends_at_its_total(spoken, begin, byte):
    client = spoken(begin, byte)
    started = time.monotonic()
    with pytest.raises(ollama.Timeout, match=r"Not complete after 0\.2 s"):
        list(client.generate("m", "p", limits=ollama.Limits(read=5, total=0.2)))
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("bound", ["LINE_BYTES", "REPLY_BYTES"])
def test_a_gigantic_chunk_is_given_up_before_it_is_complete(spoken, monkeypatch, bound):
    monkeypatch.setattr(ollama_wire, bound, 1000)
    client = spoken(HEAD + CHUNKS + b"12c00000\r\n" + b"x" * 1001)
    limits = ollama.Limits(read=5, total=5)
    with pytest.raises(ollama.TooLong):
        list(client.generate("m", "p", limits=limits)) if bound == "LINE_BYTES" else client.version(limits)


def test_one_connection_serves_many_requests():
    connections = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self):
            connections.append(1)
            super().setup()

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = b'{"response": "a"}\n{"done": true}\n'
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(answer), answer))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with ollama.Client(f"http://127.0.0.1:{server.server_port}") as client:
            for _ in range(5):
                assert len(list(client.generate("m", "p", limits=ollama.Limits(read=5)))) == 2
        server.shutdown()
    assert len(connections) == 1


def test_push_says_how_far_it_is(httpserver, client):
    events = [{"status": "pushing manifest"}, {"status": "success"}]
    httpserver.expect_request("/api/push").respond_with_data(lines(*events))
    assert list(client.push("10.0.0.1:5000/library/m", insecure=True)) == events
    assert body_of(httpserver) == {"model": "10.0.0.1:5000/library/m", "insecure": True, "stream": True}


def test_an_embedding_model_is_unloaded_at_its_own_path(httpserver, client):
    httpserver.expect_request("/api/show").respond_with_json(SHOW)
    httpserver.expect_request("/api/ps").respond_with_handler(
        in_turn(({"models": [{"name": "e:latest"}]}, 200), ({"models": []}, 200))
    )
    refusal = {"error": '"e" does not support generate'}
    httpserver.expect_request("/api/generate").respond_with_json(refusal, status=400)
    httpserver.expect_request("/api/embed").respond_with_json({"embeddings": []})
    client.unload("e")
    embeds = [json.loads(request.get_data()) for request, _ in httpserver.log if request.path == "/api/embed"]
    assert embeds == [{"model": "e", "keep_alive": 0}]


FOR_BOTH = {"OLLAMA_BASE_URL": "http://ollama:11434/", "OLLAMA_HOST_BASE_URL": "http://h:1"}


@pytest.mark.parametrize(
    ("environment", "inside", "url"),
    [
        ({}, False, "http://127.0.0.1:11434"),
        ({"OLLAMA_HOST_BASE_URL": "http://localhost:11435"}, True, "http://localhost:11435"),
        ({"OLLAMA_BASE_URL": "http://localhost:11435"}, False, "http://localhost:11435"),
        (FOR_BOTH, True, "http://ollama:11434"),
        (FOR_BOTH, False, "http://h:1"),
        ({"OLLAMA_BASE_URL": " "}, True, "http://127.0.0.1:11434"),
    ],
)
def test_the_environment_names_the_instance(monkeypatch, tmp_path, environment, inside, url):
    monkeypatch.setattr(ollama, "CONTAINER_MARKS", [tmp_path if inside else tmp_path / "none"])
    for name in ollama.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = ollama.from_environment()
    assert (client.base_url, client.openai_url) == (url, f"{url}/v1")
