"""What the verification asks of a model."""

from __future__ import annotations

import pytest

from aiplatform import asking, completions, ollama


class Client:
    """An Ollama that keeps what it was asked."""

    seen: dict

    def __init__(self, url):
        pass

    def generate(self, model, prompt, **options):
        type(self).seen = {"model": model, "prompt": prompt, **options}
        return [ollama.Chunk("Paris", {"done": True, "eval_count": 2, "eval_duration": 1e9})]


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(ollama, "Client", Client)
    return Client


# An answer drawn by chance may be empty, and a deploy then fails now and then for nothing.
def test_no_answer_is_left_to_chance(client):
    assert asking.ask("http://127.0.0.1:1", "a:1", 8) == asking.Reply(2, 2.0)
    assert client.seen["options"] == {"num_predict": 8, "temperature": 0, "seed": 0}
    body = completions.question("a:1", 8)
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0, 0, 8)
    assert body["messages"][0]["content"] == client.seen["prompt"]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, '{"choices": [{"message": {"content": "Paris."}}]}', "an answer of 6 characters"),
        (200, '{"choices": [{"message": {"content": "\\n", "reasoning": "Hm"}}]}', "an answer of 2 characters"),
        (200, '{"choices": [{"message": {"content": "\\n\\n"}}]}', "HTTP 200, an empty answer"),
        (200, "<html>", "HTTP 200: <html>"),
        (502, "<html>\n bad gateway", "HTTP 502: <html> bad gateway"),
    ],
)
def test_what_came_is_told(status, body, said):
    assert completions.told(status, body) == said
