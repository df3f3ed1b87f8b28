"""Calls of a real Ollama with a real model: answers, data, cancelling, several at once."""

from __future__ import annotations

import time

import pytest

from aiplatform import calling, load_test, ollama, prompts, structured, wait
from aiplatform.answer_cache import AnswerCache
from tests.functional.local_ollama import generates, make_model, rests, serving, weights

FIXED = {"temperature": 0, "seed": 1, "num_predict": 12}


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    weights()
    with serving(tmp_path_factory.mktemp("ollama"), OLLAMA_NUM_PARALLEL="2") as client:
        make_model(client, "gemma:test")
        client.load("gemma:test")
        yield calling.Caller(client, cache=AnswerCache())


def test_an_answer_and_its_figures(caller):
    told = []
    answer = caller.generate("gemma:test", "Say hello.", options=FIXED, on_text=told.append)
    assert answer.text == "".join(told) != ""
    assert (answer.model, answer.cached) == ("gemma:test", False)
    assert 0 < answer.tokens <= 12
    assert answer.prompt_tokens > 3
    assert 0 < answer.first_token < answer.seconds
    again = caller.generate("gemma:test", "Say hello.", options=FIXED)
    assert (again.text, again.cached) == (answer.text, True)


def test_a_conversation(caller):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
    assert caller.chat("gemma:test", messages, options=FIXED).text.strip()


def test_data_within_a_schema(caller):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green", "blue"]}, "count": {"type": "integer"}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    evidence = ["There are three apples.", {"text": "All apples are red.", "source": "farmer"}]
    data = structured.extract(caller, "gemma:test", "Which colour, how many?", evidence, schema, num_predict=40)
    assert data["colour"] in ("red", "green", "blue")
    assert isinstance(data["count"], int)


def test_leaving_in_mid_stream_ends_the_work_on_the_server(caller):
    """Held open and not read, the stream keeps the runner at work; left, it does not."""
    pieces = caller.stream("gemma:test", "Count to a thousand.", options={"num_predict": 2000, "temperature": 0})
    next(pieces)
    generates(caller.client, seconds=2)
    pieces.close()
    rests(caller.client)


def test_a_deadline_ends_an_answer(caller):
    begin = time.monotonic()
    with pytest.raises(ollama.Timeout):
        caller.generate("gemma:test", "Count to a thousand.", options={"num_predict": 2000}, deadline=1.0)
    assert time.monotonic() - begin < 3


def test_five_at_once(caller):
    url = caller.client.base_url
    plan = load_test.Plan("gemma:test", count=5, concurrency=5, duration=120, num_predict=4)
    result = load_test.run(lambda: ollama.Client(url), plan)
    assert (result["succeeded"], result["errors"], result["retcode"]) == (5, {}, 0)
    latency = result["latency"]
    assert latency["p50"] >= result["first_token"]["p50"] > 0
    # One after the other they take as long as all of them together, which is no less than this.
    assert result["seconds"] < 2 * latency["min"] + 2 * latency["p50"] + latency["max"]


def test_tokens_are_counted_by_the_model(caller):
    text = "The quick brown fox jumps over the lazy dog. " * 200
    wait.until(lambda: caller.client.loaded("gemma:test"), 10)
    cut = caller.fit(text, "gemma:test", 300)
    # The rule of thumb would take 4 characters a token.
    assert 250 <= caller.count(cut[: len(cut) // 2], "gemma:test") * 2 <= 310
    assert cut.endswith(".")
    assert len(cut) != len(prompts.truncate(text, 300))


def test_a_model_that_is_missing_says_what_to_do(caller):
    with pytest.raises(ollama.ModelNotFound, match=r"ollama\.pull"):
        caller.generate("absent:1", "hi")
    assert caller.try_generate("absent:1", "hi") is None
