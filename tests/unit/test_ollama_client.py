"""The Ollama client at the wire: every call's request and reply, every failure's name."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
from werkzeug import Response

from aiplatform import ollama

SHOW = {"modelfile": f"# FROM m:latest\nFROM /store/blobs/sha256-{'a' * 64}\nFROM /store/blobs/sha256-{'b' * 64}\n"}


def lines(*pieces: dict) -> str:
    return "".join(json.dumps(piece) + "\n" for piece in pieces)


def in_turn(*replies: tuple[dict, int]):
    """A handler that gives one reply a request."""
    waiting = iter(replies)

    def handler(_):
        data, status = next(waiting)
        return Response(json.dumps(data), status=status, content_type="application/json")

    return handler


def body_of(httpserver, index: int = -1) -> dict:
    return json.loads(httpserver.log[index][0].get_data())


# -- names and digests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("llama3", "llama3:latest"),
        ("Llama3.2:3B", "llama3.2:3b"),
        ("  gemma:Latest ", "gemma:latest"),
        ("library/llama3", "llama3:latest"),
        ("registry.ollama.ai/library/llama3:8b", "llama3:8b"),
        ("registry.ollama.ai/team/m", "team/m:latest"),
        ("team/model", "team/model:latest"),
        ("10.0.0.1:5000/library/m", "10.0.0.1:5000/library/m:latest"),
        ("10.0.0.1:5000/library/m:q4", "10.0.0.1:5000/library/m:q4"),
        ("http://10.0.0.1:5000/library/m:q4", "10.0.0.1:5000/library/m:q4"),
        ("hf.co/Org/Repo-GGUF", "hf.co/org/repo-gguf:latest"),
    ],
)
def test_one_spelling_of_a_name(given, expected):
    assert ollama.normalise(given) == expected
    assert ollama.normalise(expected) == expected


@pytest.mark.parametrize("given", ["", "  ", "host/ns/", ":tag"])
def test_no_name_is_refused(given):
    with pytest.raises(ValueError, match="model name"):
        ollama.normalise(given)


def test_weights_digest_is_the_first_from_line_that_is_no_comment():
    assert ollama.weights_digest(SHOW) == "a" * 64


@pytest.mark.parametrize("show", [{}, {"modelfile": ""}, {"modelfile": "FROM llama3"}, {"modelfile": "FROM sha256-12"}])
def test_no_weights_digest_is_said(show):
    with pytest.raises(ollama.BadReply, match="modelfile"):
        ollama.weights_digest(show)


# -- requests and replies -----------------------------------------------------------------------------------------


def test_version_and_health(httpserver, client):
    httpserver.expect_request("/api/version", method="GET").respond_with_json({"version": "0.17.4"})
    assert client.version() == "0.17.4"
    assert client.health() is True


@pytest.mark.parametrize(("call", "path"), [("tags", "/api/tags"), ("ps", "/api/ps")])
def test_lists(httpserver, client, call, path):
    httpserver.expect_ordered_request(path).respond_with_json({"models": [{"name": "m:latest"}]})
    httpserver.expect_ordered_request(path).respond_with_json({"models": None})
    assert getattr(client, call)() == [{"name": "m:latest"}]
    assert getattr(client, call)() == []


def test_has_compares_normalised_names(httpserver, client):
    httpserver.expect_request("/api/tags").respond_with_json({"models": [{"name": "Gemma:latest"}]})
    assert client.has("gemma")
    assert not client.has("gemma:2b")


def test_pull_yields_progress_until_success(httpserver, client):
    events = [{"status": "pulling manifest"}, {"status": "pulling", "total": 9, "completed": 3}, {"status": "success"}]
    httpserver.expect_request("/api/pull", method="POST").respond_with_data(lines(*events))
    assert list(client.pull("10.0.0.1:5000/library/m:q4", insecure=True)) == events
    assert body_of(httpserver) == {"model": "10.0.0.1:5000/library/m:q4", "insecure": True, "stream": True}


def test_create_passes_its_fields(httpserver, client):
    httpserver.expect_request("/api/create", method="POST").respond_with_data(lines({"status": "success"}))
    list(client.create("alias", **{"from": "base", "parameters": {"num_ctx": 8192}}))
    assert body_of(httpserver) == {
        "model": "alias",
        "stream": True,
        "from": "base",
        "parameters": {"num_ctx": 8192},
    }


def test_copy_and_delete(httpserver, client):
    httpserver.expect_request("/api/copy", method="POST", json={"source": "a", "destination": "b"}).respond_with_data()
    httpserver.expect_request("/api/delete", method="DELETE", json={"model": "b"}).respond_with_data()
    client.copy("a", "b")
    client.delete("b")
    assert len(httpserver.log) == 2


@pytest.mark.parametrize(("status", "there"), [(200, True), (404, False)])
def test_has_blob(httpserver, client, status, there):
    httpserver.expect_request(f"/api/blobs/sha256:{'a' * 64}", method="HEAD").respond_with_data(status=status)
    assert client.has_blob("a" * 64) is there


def test_upload_blob_sends_the_file(httpserver, client, tmp_path):
    (tmp_path / "weights").write_bytes(b"GGUF")
    httpserver.expect_request("/api/blobs/sha256:ff", method="POST", data=b"GGUF").respond_with_data(status=201)
    client.upload_blob(str(tmp_path / "weights"), "ff")


def test_load_sends_keep_alive_as_a_number(httpserver, client):
    httpserver.expect_request("/api/generate").respond_with_json({"done": True, "done_reason": "load"})
    client.load("m", options={"num_ctx": 4096})
    assert body_of(httpserver) == {"model": "m", "keep_alive": -1, "stream": False, "options": {"num_ctx": 4096}}


def test_load_of_an_embedding_model_goes_by_embed(httpserver, client):
    refusal = {"error": '"m" does not support generate'}
    httpserver.expect_request("/api/generate").respond_with_json(refusal, status=400)
    httpserver.expect_request("/api/embed").respond_with_json({"embeddings": []})
    client.load("m")
    assert body_of(httpserver) == {"model": "m", "keep_alive": -1}


def test_unload_waits_for_every_name_of_the_weights(httpserver, client):
    httpserver.expect_request("/api/show").respond_with_json(SHOW)
    httpserver.expect_request("/api/generate").respond_with_json({"done": True, "done_reason": "unload"})
    other_alias = {"models": [{"name": "alias:latest"}]}
    replies = [(other_alias, 200), (other_alias, 200), ({"error": "nil pointer"}, 500), ({"models": []}, 200)]
    httpserver.expect_request("/api/ps").respond_with_handler(in_turn(*replies))
    client.unload("m")
    assert [entry[0].path for entry in httpserver.log].count("/api/ps") == 4


def test_unload_gives_up_with_a_name(httpserver, client):
    httpserver.expect_request("/api/show").respond_with_json(SHOW)
    httpserver.expect_request("/api/generate").respond_with_json({"done": True})
    httpserver.expect_request("/api/ps").respond_with_json({"models": [{"name": "m:latest"}]})
    with pytest.raises(ollama.Timeout, match="still loaded"):
        client.unload("m", limits=ollama.Limits(total=0.3))


def test_loaded_knows_other_names_and_deleted_ones(httpserver, client):
    httpserver.expect_request("/api/show", json={"model": "m"}).respond_with_json(SHOW)
    httpserver.expect_request("/api/show", json={"model": "alias"}).respond_with_json(SHOW)
    gone = {"error": "model 'gone' not found"}
    httpserver.expect_request("/api/show", json={"model": "gone"}).respond_with_json(gone, status=404)
    replies = [({"models": [{"name": "alias"}]}, 200), ({"models": [{"name": "gone"}]}, 200)]
    httpserver.expect_request("/api/ps").respond_with_handler(in_turn(*replies))
    assert client.loaded("m") is True
    assert client.loaded("m") is False


def test_generate_yields_chunks_with_times(httpserver, chunked, client):
    def slowly():
        yield lines({"response": "a"})
        time.sleep(0.2)
        yield lines({"response": "b"}, {"done": True, "eval_count": 2})

    httpserver.expect_request("/api/generate").respond_with_handler(lambda _: Response(slowly()))
    chunks = list(client.generate("m", "hi", options={"seed": 1}, think=False))
    assert [chunk.data.get("response") for chunk in chunks] == ["a", "b", None]
    assert chunks[1].at - chunks[0].at == pytest.approx(0.2, abs=0.15)
    assert chunks[-1].data["eval_count"] == 2
    assert body_of(httpserver)["think"] is False


def test_chat_streams_too(httpserver, client):
    httpserver.expect_request("/api/chat").respond_with_data(lines({"message": {"content": "x"}}, {"done": True}))
    chunks = list(client.chat("m", [{"role": "user", "content": "hi"}]))
    assert chunks[0].data["message"]["content"] == "x"


def test_embed_returns_a_vector_a_text(httpserver, client):
    httpserver.expect_request("/api/embed").respond_with_json({"embeddings": [[1.0], [2.0]]})
    assert client.embed("m", ["a", "b"]) == [[1.0], [2.0]]
    with pytest.raises(ollama.BadReply, match="1 vectors"):
        client.embed("m", ["a"])


def test_a_token_is_sent_and_never_shown(httpserver):
    httpserver.expect_request("/api/version").respond_with_json({"error": "no"}, status=401)
    client = ollama.Client(httpserver.url_for(""), token="very-secret")
    with pytest.raises(ollama.OllamaError) as caught:
        client.version()
    assert httpserver.log[0][0].headers["Authorization"] == "Bearer very-secret"
    assert "very-secret" not in str(caught.value)
    assert caught.value.status == 401


def test_proxies_of_the_environment_are_not_used(httpserver, client, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    httpserver.expect_request("/api/version").respond_with_json({"version": "1"})
    assert client.version() == "1"


# -- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (404, "model 'm' not found", ollama.ModelNotFound),
        (404, "", ollama.BadReply),
        (500, "model requires more system memory (9 GiB) than is available (1 GiB)", ollama.OutOfMemory),
        (500, "llama runner process has terminated: signal: killed", ollama.OutOfMemory),
        (500, "llama runner process has terminated: cudaMalloc failed: out of memory", ollama.OutOfMemory),
        (500, "llama_model_load: error loading model: unable to allocate CPU buffer", ollama.OutOfMemory),
        (500, "failed to allocate CUDA0 buffer of size 838447104", ollama.OutOfMemory),
        (500, "something else", ollama.ServerFailed),
        (501, "this model does not support embeddings", ollama.RequestRefused),
        (503, "server busy, please try again", ollama.Busy),
        (400, 'time: missing unit in duration "-1"', ollama.RequestRefused),
        (403, "", ollama.RequestRefused),
        (302, "", ollama.Redirected),
    ],
)
def test_each_refusal_has_its_name(httpserver, client, status, text, kind):
    reply = json.dumps({"error": text}) if text else ""
    httpserver.expect_request("/api/show").respond_with_data(reply, status=status)
    with pytest.raises(ollama.OllamaError) as caught:
        client.show("m")
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert httpserver.url_for("/api/show") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("pull model manifest: file does not exist", ollama.ModelNotFound),
        ("model requires more system memory (9 GiB) than is available (1 GiB)", ollama.OutOfMemory),
        ("write /store: no space left on device", ollama.OllamaError),
    ],
)
def test_an_error_inside_a_stream_that_said_200(httpserver, client, text, kind):
    httpserver.expect_request("/api/pull").respond_with_data(lines({"status": "pulling manifest"}, {"error": text}))
    events = client.pull("m")
    assert next(events) == {"status": "pulling manifest"}
    with pytest.raises(ollama.OllamaError, match=text[:20]) as caught:
        next(events)
    assert type(caught.value) is kind


@pytest.mark.parametrize("reply", ["<html>", "[1]", "", '{"version": 17}', "{}"])
def test_a_reply_that_is_no_ollamas(httpserver, client, reply):
    httpserver.expect_request("/api/version").respond_with_data(reply)
    with pytest.raises(ollama.BadReply, match="expected"):
        client.version()


def test_a_refusal_nested_too_deeply_has_a_name(httpserver, client):
    httpserver.expect_request("/api/show").respond_with_data("[" * 100_000, status=400)
    with pytest.raises(ollama.RequestRefused):
        client.show("m")


@pytest.mark.parametrize("call", [lambda c: c.pull("m"), lambda c: c.generate("m", "p"), lambda c: c.create("m")])
def test_a_stream_that_ends_early(httpserver, client, call):
    for path in ("/api/pull", "/api/generate", "/api/create"):
        httpserver.expect_request(path).respond_with_data(lines({"status": "half"}))
    with pytest.raises(ollama.BadReply, match="end of the stream"):
        list(call(client))


def test_nothing_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    client = ollama.Client(url)
    with pytest.raises(ollama.InstanceDown, match="Nothing answers"):
        client.version()
    assert client.health() is False


def test_the_connection_breaks_in_mid_stream():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            peer, _ = server.accept()
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n13\r\n" + b'{"response": "a"}\r\n\r\n')
            peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        chunks = ollama.Client(f"http://127.0.0.1:{server.getsockname()[1]}").generate("m", "p")
        assert next(chunks).data == {"response": "a"}
        with pytest.raises(ollama.InstanceDown, match="middle of the reply"):
            next(chunks)
        thread.join()


def test_silence_is_a_timeout(httpserver, client, hush):
    def silent(_):
        hush()
        return Response("{}")

    httpserver.expect_request("/api/version").respond_with_handler(silent)
    with pytest.raises(ollama.Timeout, match=r"Silent for 0\.2 s"):
        client.version(ollama.Limits(read=0.2))
    assert client.health(ollama.Limits(read=0.2)) is False


def test_silence_within_a_stream_is_a_timeout(httpserver, chunked, client, hush):
    def silent():
        yield lines({"response": "a"})
        hush()
        yield lines({"done": True})

    httpserver.expect_request("/api/generate").respond_with_handler(lambda _: Response(silent()))
    with pytest.raises(ollama.Timeout, match="Silent"):
        list(client.generate("m", "p", limits=ollama.Limits(read=0.2)))


def test_a_stream_that_drips_ends_at_its_total(httpserver, chunked, client):
    def dripping():
        for _ in range(40):
            time.sleep(0.05)
            yield lines({"response": "a"})

    httpserver.expect_request("/api/generate").respond_with_handler(lambda _: Response(dripping()))
    started = time.monotonic()
    with pytest.raises(ollama.Timeout, match=r"Not complete after 0\.3 s"):
        list(client.generate("m", "p", limits=ollama.Limits(read=5, total=0.3)))
    assert time.monotonic() - started < 1.5
