"""The fields of Ollama's API: what a caller gives goes out, what the instance says comes back whole."""

from __future__ import annotations

from tests.unit.test_ollama_client import body_of, lines

LAST = {
    "model": "m",
    "created_at": "2026-01-01T00:00:00Z",
    "done": True,
    "done_reason": "stop",
    "total_duration": 5_000_000_000,
    "prompt_eval_count": 7,
    "prompt_eval_duration": 130_000_000,
    "eval_count": 2,
    "eval_duration": 259_000_000,
}


def test_a_prompt_goes_out_with_its_fields_and_all_that_comes_back_is_told(httpserver, client):
    httpserver.expect_request("/api/generate").respond_with_data(lines({"response": "a"}, LAST))
    fields = {"system": "Be brief.", "template": "{{ .Prompt }}", "options": {"temperature": 0.7}}
    chunks = list(client.generate("m", "Why?", **fields))
    assert body_of(httpserver) == {"model": "m", "prompt": "Why?", "stream": True, **fields}
    assert [chunk.data for chunk in chunks] == [{"response": "a"}, LAST]


def test_a_conversation_goes_out_with_its_roles(httpserver, client):
    said = {"message": {"role": "assistant", "content": "a"}}
    httpserver.expect_request("/api/chat").respond_with_data(lines(said, LAST))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    chunks = list(client.chat("m", messages, options={"top_p": 0.9}))
    assert body_of(httpserver) == {"model": "m", "messages": messages, "stream": True, "options": {"top_p": 0.9}}
    assert chunks[0].data["message"] == said["message"]
