"""Calls as a service makes them, at the wire: retries, deadline, fallback, cache, cancelling, counting."""

from __future__ import annotations

import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from werkzeug import Response

from aiplatform import calling, ollama
from aiplatform.answer_cache import AnswerCache
from tests.unit.test_ollama_client import SHOW, lines

QUICKLY = calling.Retries(base=0.01, after_timeout=0.01)
GOOD = lines({"response": "a"}, {"response": "b"}, {"done": True, "eval_count": 2, "prompt_eval_count": 5})


@pytest.fixture
def caller(client):
    return calling.Caller(client, retries=QUICKLY)


@pytest.fixture
def silent():
    """A client of a server that takes requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield ollama.Client(f"http://127.0.0.1:{server.getsockname()[1]}")


def answers(httpserver, *replies, path="/api/generate"):
    """Give one reply a request, the last one from then on; returns the list of bodies seen."""
    waiting = list(replies)
    seen = []

    def handler(request):
        seen.append(json.loads(request.get_data()))
        reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        status, text = reply if isinstance(reply, tuple) else (200, reply)
        return Response(text, status=status)

    httpserver.expect_request(path).respond_with_handler(handler)
    return seen


def test_an_answer_says_what_it_cost(httpserver, caller):
    answers(httpserver, GOOD)
    answer = caller.generate("m", "hi", system="s", options={"temperature": 0})
    assert (answer.text, answer.model, answer.tokens, answer.prompt_tokens) == ("ab", "m", 2, 5)
    assert 0 < answer.first_token <= answer.seconds
    assert 'ollama_calls_total{model="m",operation="generate",outcome="ok"} 1.0' in caller.metrics.text()


def test_a_chat_is_answered_too(httpserver, caller):
    answers(httpserver, lines({"message": {"content": "x"}}, {"done": True}), path="/api/chat")
    assert caller.chat("m", [{"role": "user", "content": "hi"}]).text == "x"


@pytest.mark.parametrize(
    ("reply", "tries"),
    [
        ((503, '{"error": "server busy"}'), 3),
        ((502, "<html>bad gateway</html>"), 3),
        ((500, '{"error": "llama runner process has terminated"}'), 3),
        ((500, '{"error": "model requires more system memory (9 GiB) than is available"}'), 1),
        ((404, '{"error": "model \'m\' not found"}'), 1),
        ((400, '{"error": "bad"}'), 1),
        ((307, ""), 1),
        ("<html>", 1),
        (lines({"response": "a"}), 1),  # cut off: what Ollama wrote cannot be trusted to come again
        (lines({"response": 7}), 1),
    ],
)
def test_only_what_may_help_is_tried_again(httpserver, caller, reply, tries):
    seen = answers(httpserver, reply)
    with pytest.raises(ollama.OllamaError):
        caller.generate("m", "hi")
    assert len(seen) == tries


def test_a_second_try_may_succeed_and_the_log_names_the_first(httpserver, caller, caplog):
    caplog.set_level(logging.WARNING)
    answers(httpserver, (503, '{"error": "busy"}'), GOOD)
    assert caller.generate("m", "hi").text == "ab"
    assert any("Try 1 of 3 failed" in message for message in caplog.messages)


def test_waits_double_and_have_jitter_and_none_follows_the_last_try(monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    caller = calling.Caller(ollama.Client("http://127.0.0.1:9"))
    with pytest.raises(ollama.InstanceDown):
        caller.generate("m", "hi")
    assert len(waits) == 2
    assert 1 <= waits[0] <= 1.25
    assert 2 <= waits[1] <= 2.5


def test_after_a_timeout_the_wait_is_one_second(silent, monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    with pytest.raises(ollama.Timeout):
        calling.Caller(silent).generate("m", "hi", limits=ollama.Limits(read=0.1))
    assert waits == [1.0, 1.0]


def test_a_deadline_holds_over_tries_and_waits(silent):
    caller = calling.Caller(silent, retries=calling.Retries(attempts=50, after_timeout=0.05))
    begin = time.monotonic()
    with pytest.raises(ollama.Timeout):
        caller.generate("m", "hi", limits=ollama.Limits(read=0.2), deadline=0.7)
    assert 0.3 < time.monotonic() - begin < 1.2


def test_after_the_first_piece_nothing_is_tried_again(httpserver, caller):
    seen = answers(httpserver, lines({"response": "a"}, {"error": "llama runner process has terminated"}))
    told = []
    with pytest.raises(ollama.OllamaError):
        caller.generate("m", "hi", on_text=told.append)
    assert (len(seen), told) == (1, ["a"])


def test_pieces_come_as_they_are_made(httpserver, chunked, caller):
    def slowly():
        yield lines({"response": "a"})
        time.sleep(0.3)
        yield lines({"done": True})

    httpserver.expect_request("/api/generate").respond_with_handler(lambda _: Response(slowly()))
    begin = time.monotonic()
    pieces = caller.stream("m", "hi")
    assert next(pieces) == "a"
    assert time.monotonic() - begin < 0.25
    assert list(pieces) == []
    assert 'outcome="ok"' in caller.metrics.text()


def test_leaving_a_stream_closes_its_connection():
    """That is how Ollama learns that nobody waits for the answer any more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pieces = calling.Caller(ollama.Client(f"http://127.0.0.1:{server.getsockname()[1]}")).stream("m", "hi")
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, pieces)
            peer, _ = server.accept()
            with peer:
                peer.settimeout(5)
                peer.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n{"response": "a"}\n\r\n')
                assert first.result() == "a"
                pieces.close()
                while peer.recv(65536):  # the request, and then the end
                    pass


def test_a_stream_that_is_left_is_counted_and_logged(httpserver, caller, caplog):
    caplog.set_level(logging.INFO)
    answers(httpserver, GOOD)
    pieces = caller.stream("m", "hi")
    assert next(pieces) == "a"
    pieces.close()
    assert 'ollama_calls_total{model="m",operation="generate",outcome="cancelled"} 1.0' in caller.metrics.text()
    assert "cancelled: model=m" in caplog.text
    assert "response_length=1 " in caplog.text


def test_a_model_that_is_missing_has_a_substitute(httpserver, client):
    seen = answers(httpserver, (404, '{"error": "model \'m\' not found"}'), GOOD)
    answer = calling.Caller(client, retries=QUICKLY, fallback="small").generate("m", "hi")
    assert (answer.model, [body["model"] for body in seen]) == ("small", ["m", "small"])


def test_a_stream_is_tried_again_up_to_its_first_piece(httpserver, caller):
    seen = answers(httpserver, (503, "{}"), (500, '{"error": "llama runner has terminated"}'), GOOD)
    assert list(caller.stream("m", "hi")) == ["a", "b"]
    assert len(seen) == 3


def test_a_stream_is_not_tried_again_after_its_first_piece(httpserver, caller):
    seen = answers(httpserver, lines({"response": "a"}, {"error": "llama runner process has terminated"}))
    pieces = caller.stream("m", "hi")
    assert next(pieces) == "a"
    with pytest.raises(ollama.OllamaError):
        next(pieces)
    assert len(seen) == 1


def test_a_stream_has_a_substitute_and_counts_as_its(httpserver, client):
    answers(httpserver, (404, '{"error": "model \'m\' not found"}'), GOOD)
    caller = calling.Caller(client, retries=QUICKLY, fallback="small")
    assert "".join(caller.stream("m", "hi")) == "ab"
    assert 'ollama_calls_total{model="small",operation="generate",outcome="ok"} 1.0' in caller.metrics.text()


@pytest.mark.parametrize(
    "call",
    [
        lambda caller: list(caller.stream("m", "hi", deadline=0.4)),
        lambda caller: caller.count("hi", "m", deadline=0.4),
        lambda caller: caller.fit("hi" * 100, "m", 10, deadline=0.4),
    ],
)
def test_a_deadline_holds_for_streams_and_counts(silent, call):
    begin = time.monotonic()
    with pytest.raises(ollama.Timeout):
        call(calling.Caller(silent, retries=QUICKLY))
    assert time.monotonic() - begin < 2


def test_a_count_is_tried_again_and_counted(httpserver, caller):
    good = lines({"response": "x", "done": True, "prompt_eval_count": 7})
    answers(httpserver, (503, "{}"), good, (404, '{"error": "model \'m\' not found"}'))
    assert caller.count("hi", "m") == 7
    with pytest.raises(ollama.ModelNotFound):
        caller.count("hi", "m")
    for outcome in ("ok", "ModelNotFound"):
        assert f'ollama_calls_total{{model="m",operation="count",outcome="{outcome}"}} 1.0' in caller.metrics.text()


def test_nothing_comes_back_where_the_caller_goes_on_without(httpserver, caller, caplog):
    answers(httpserver, (503, '{"error": "busy"}'))
    assert caller.try_generate("m", "hi") is None
    assert "Going on without an answer of m" in caplog.text


def test_a_deterministic_answer_is_kept(httpserver, client):
    seen = answers(httpserver, GOOD)
    httpserver.expect_request("/api/show").respond_with_json(SHOW)
    caller = calling.Caller(client, cache=AnswerCache())
    told = []
    for _ in range(3):
        answer = caller.generate("m", "hi", options={"temperature": 0}, on_text=told.append)
    assert (len(seen), answer.text, answer.cached) == (1, "ab", True)
    assert told == ["a", "b", "ab", "ab"]
    assert 'outcome="cached"} 2.0' in caller.metrics.text()
    caller.generate("m", "other", options={"temperature": 0})
    for _ in range(2):
        caller.generate("m", "hi")
    assert len(seen) == 4


def test_the_answer_of_a_substitute_is_not_kept_as_the_models_own(httpserver, client):
    answers(httpserver, (404, '{"error": "model \'m\' not found"}'), GOOD)
    httpserver.expect_request("/api/show").respond_with_json(SHOW)
    caller = calling.Caller(client, retries=QUICKLY, fallback="small", cache=AnswerCache())
    caller.generate("m", "hi", options={"temperature": 0})
    assert len(caller.cache) == 0


def test_an_answer_in_whose_time_the_alias_moved_is_not_kept(httpserver, client):
    """It may be the old model's; kept under the new one's weights it would be told for an hour."""
    moved = {**SHOW, "modelfile": SHOW["modelfile"].replace("sha256-", "sha256-f", 1)}
    shown = iter([SHOW, moved, moved, moved])
    httpserver.expect_request("/api/show").respond_with_handler(lambda _: Response(json.dumps(next(shown))))
    seen = answers(httpserver, GOOD)
    caller = calling.Caller(client, cache=AnswerCache())
    for wanted in (0, 1):
        caller.generate("m", "hi", options={"temperature": 0})
        assert len(caller.cache) == wanted
    assert len(seen) == 2


def test_a_deadline_holds_where_answers_are_kept(silent):
    caller = calling.Caller(silent, retries=QUICKLY, cache=AnswerCache())
    begin = time.monotonic()
    with pytest.raises(ollama.Timeout):
        caller.generate("m", "hi", options={"temperature": 0}, deadline=0.5)
    assert time.monotonic() - begin < 1


def test_vectors_are_retried(httpserver, caller):
    answers(httpserver, (503, "{}"), json.dumps({"embeddings": [[1.0]]}), path="/api/embed")
    assert caller.embed("e", ["x"]) == [[1.0]]


def test_a_text_is_cut_by_the_models_own_tokens(httpserver, caller):
    show = {**SHOW, "modelfile": SHOW["modelfile"]}
    httpserver.expect_request("/api/show").respond_with_json(show)
    httpserver.expect_request("/api/ps").respond_with_json({"models": [{"name": "m:latest"}]})
    seen = answers(httpserver, lines({"response": "x", "done": True, "prompt_eval_count": 100}))
    text = "x" * 10_000
    assert len(caller.fit(text, "m", 1000)) == 1900  # 2 characters a token, 5 % spared
    assert all(body["raw"] and body["options"] == {"num_predict": 1} for body in seen)


def test_a_text_that_begins_denser_than_it_goes_on_is_within_the_budget(httpserver, caller):
    """Digits make a token each here, letters a quarter of one."""
    httpserver.expect_request("/api/show").respond_with_json(SHOW)
    httpserver.expect_request("/api/ps").respond_with_json({"models": [{"name": "m:latest"}]})

    def tokens(text):
        return sum(1 if letter.isdigit() else 0.25 for letter in text)

    def handler(request):
        text = json.loads(request.get_data())["prompt"]
        return Response(lines({"response": "x", "done": True, "prompt_eval_count": round(tokens(text))}))

    httpserver.expect_request("/api/generate").respond_with_handler(handler)
    assert 600 < tokens(caller.fit("7" * 2_000 + "x" * 20_000, "m", 1000)) <= 1000


def test_a_model_that_is_not_loaded_is_not_loaded_for_a_count(httpserver, caller):
    httpserver.expect_request("/api/show").respond_with_json(SHOW)
    httpserver.expect_request("/api/ps").respond_with_json({"models": []})
    assert len(caller.fit("x" * 10_000, "m", 1000)) == 4000
