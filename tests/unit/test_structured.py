"""Answers that are data: asked for by schema, checked, repaired once."""

from __future__ import annotations

import json

import pytest

from aiplatform import calling, ollama, structured
from tests.unit.test_calling import answers
from tests.unit.test_ollama_client import lines

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
EVIDENCE = ["Ada was born in 1815.", {"text": "She died at 36.", "source": "church book"}]


def said(text: str) -> str:
    return lines({"response": text}, {"done": True})


@pytest.fixture
def caller(client):
    return calling.Caller(client, retries=calling.Retries(attempts=1))


def test_data_come_back(httpserver, caller):
    seen = answers(httpserver, said('{"name": "Ada", "age": 36}'))
    assert structured.extract(caller, "m", "Who?", EVIDENCE, SCHEMA) == {"name": "Ada", "age": 36}
    (body,) = seen
    assert body["format"] == SCHEMA
    assert body["options"]["temperature"] == 0
    assert "[2] (church book) She died at 36." in body["prompt"]


@pytest.mark.parametrize("wrong", ['{"name": "Ada"', '{"name": "Ada"}', '{"name": "Ada", "age": -1}', "[]", ""])
def test_one_repair_is_tried_and_told_what_is_wrong(httpserver, caller, wrong):
    seen = answers(httpserver, said(wrong), said('{"name": "Ada", "age": 36}'))
    assert structured.extract(caller, "m", "Who?", EVIDENCE, SCHEMA)["age"] == 36
    assert len(seen) == 2
    assert "It is not valid:\n- " in seen[1]["prompt"]
    assert wrong in seen[1]["prompt"]


def test_after_one_repair_the_answer_is_refused_with_its_problems(httpserver, caller):
    seen = answers(httpserver, said('{"name": 1, "age": "old"}'))
    with pytest.raises(structured.InvalidAnswer) as caught:
        structured.extract(caller, "m", "Who?", EVIDENCE, SCHEMA)
    assert len(seen) == 2
    assert caught.value.problems == ["$.age: 'old' is not of type 'integer'", "$.name: 1 is not of type 'string'"]
    assert json.loads(caught.value.text)["age"] == "old"


@pytest.mark.parametrize("schema", [{"type": "objekt"}, {"properties": []}, {"required": "name"}])
def test_a_schema_that_is_none_is_refused_before_anything_is_sent(httpserver, caller, schema):
    with pytest.raises(ollama.RequestRefused, match="JSON Schema"):
        structured.extract(caller, "m", "Who?", EVIDENCE, schema)
    assert not httpserver.log


@pytest.mark.parametrize("schema", ["integer", [], 7])
def test_a_schema_that_is_no_mapping_is_refused(caller, schema):
    with pytest.raises(ollama.RequestRefused, match="JSON Schema"):
        structured.extract(caller, "m", "Who?", EVIDENCE, schema)


def test_an_answer_nested_too_deeply_is_invalid():
    assert structured.read("[" * 100_000, SCHEMA)[1][0].startswith("no JSON")
    assert structured.read("{}", {"$ref": "#"}) == (None, ["nested too deeply"])


def test_nothing_is_fetched_for_a_reference(httpserver, caller):
    answers(httpserver, said("{}"))
    with pytest.raises(ollama.RequestRefused, match="another document"):
        structured.extract(caller, "m", "Who?", EVIDENCE, {"$ref": httpserver.url_for("/schema.json")})
    assert [request.path for request, _ in httpserver.log] == ["/api/generate"]
