"""The wire to Ollama: time limits of each kind, replies that are no Ollama's, connections that are kept."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from werkzeug import Response

from aiplatform import ollama, ollama_wire
from tests.unit.test_ollama_client import SHOW, body_of, in_turn, lines


def test_a_redirect_is_not_followed_and_says_where_to(httpserver):
    httpserver.expect_request("/api/show").respond_with_data("", status=307, headers={"Location": "http://other/api"})
    client = ollama.Client(httpserver.url_for(""), token="very-secret")
    with pytest.raises(ollama.Redirected, match="http://other/api"):
        client.show("m")
    assert len(httpserver.log) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, ollama.HtmlReply), (404, ollama.HtmlReply), (502, ollama.Busy), (504, ollama.Busy), (401, ollama.HtmlReply)],
)
def test_a_web_page_of_a_proxy(httpserver, client, status, kind):
    page = "<!DOCTYPE html><html><body>Sign in</body></html>"
    httpserver.expect_request("/api/tags").respond_with_data(page, status=status, content_type="text/html")
    with pytest.raises(kind) as caught:
        client.tags()
    assert "proxy" in str(caught.value) or status == 200
    assert "Sign in" not in str(caught.value) or status == 200


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


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://127.0.0.1:11434"),
        ({"OLLAMA_HOST_BASE_URL": "http://localhost:11435"}, "http://localhost:11435"),
        ({"OLLAMA_BASE_URL": "http://ollama:11434/", "OLLAMA_HOST_BASE_URL": "http://h:1"}, "http://ollama:11434"),
        ({"OLLAMA_BASE_URL": " "}, "http://127.0.0.1:11434"),
    ],
)
def test_the_environment_names_the_instance(monkeypatch, environment, url):
    for name in ollama.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = ollama.from_environment()
    assert (client.base_url, client.openai_url) == (url, f"{url}/v1")
