"""The Ollama module's calls of models: by instance, alias or URL; counted for the whole host."""

from __future__ import annotations

import json

import pytest

from _modules import ollama as module
from aiplatform import instances
from aiplatform.errors import NotFoundError
from tests.unit.test_calling import GOOD, answers

PILLAR = {
    "ollama": {
        "api_host": "0.0.0.0",
        "instances": {"node1": {"port": 11434}, "node0": {"port": 11435}},
    },
    "slots": {1: {"instance": "node1"}, 3: {"instance": "node0"}},
    "aliases": {"coder": {"slot": 3}, "own": {"model": "m:1", "instance": "node1"}, "lost": {"slot": 9}},
    "platform": {"hosts": {"ai_server": {"address": "192.0.2.29"}}},
}


@pytest.fixture
def here(httpserver, tmp_path, monkeypatch):
    ollama = PILLAR["ollama"] | {"metrics_file": str(tmp_path / "metrics/ollama.prom")}
    monkeypatch.setattr(module, "__pillar__", PILLAR | {"ollama": ollama}, raising=False)
    monkeypatch.setattr(module, "__context__", {}, raising=False)
    return httpserver.url_for("").rstrip("/")


@pytest.mark.parametrize(
    ("where", "url"),
    [
        ("node1", "http://127.0.0.1:11434"),
        ("coder", "http://127.0.0.1:11435"),
        ("own", "http://127.0.0.1:11434"),
        ("slot-3", "http://127.0.0.1:11435"),
        ("http://h:1", "http://h:1"),
    ],
)
def test_an_instance_has_many_names(where, url):
    assert instances.resolve(PILLAR, where) == url


@pytest.mark.parametrize("where", ["node7", "lost", "slot-9", "", "slot-x"])
def test_a_name_that_leads_nowhere_is_refused(where):
    with pytest.raises(NotFoundError, match="node0, node1, coder"):
        instances.resolve(PILLAR, where)


def test_an_answer_has_the_tasks_parameters_and_is_counted(httpserver, here):
    seen = answers(httpserver, GOOD)
    for _ in range(2):
        answer = module.generate(here, "m", "hi", task="voice", system="s", options={"seed": 1})
    assert answer["text"] == "ab"
    options = {"temperature": 0.7, "top_p": 0.9, "num_predict": 500, "repeat_penalty": 1.1, "seed": 1}
    assert (seen[0]["options"], seen[0]["system"]) == (options, "s")
    assert 'ollama_calls_total{model="m",operation="generate",outcome="ok"} 2.0' in module.metrics()


def test_a_failed_call_is_counted_too(httpserver, here):
    answers(httpserver, (404, json.dumps({"error": "model 'm' not found"})))
    with pytest.raises(Exception, match=r"ollama\.pull"):
        module.generate(here, "m", "hi")
    assert 'outcome="ModelNotFound"} 1.0' in module.metrics()


def test_a_chat_and_vectors(httpserver, here):
    answers(httpserver, '{"message": {"content": "x"}}\n{"done": true}\n', path="/api/chat")
    answers(httpserver, '{"embeddings": [[1.0]]}', path="/api/embed")
    assert module.chat(here, "m", [{"role": "user", "content": "hi"}])["text"] == "x"
    assert module.embed(here, "e", ["t"]) == [[1.0]]


def test_data_out_of_evidence(httpserver, here):
    answers(httpserver, '{"response": "36"}\n{"done": true}\n')
    assert module.extract(here, "m", "How old?", ["Ada, 36"], {"type": "integer"}) == 36


def test_a_model_is_made_of_one_that_is_there_only(httpserver, here):
    answers(httpserver, (404, json.dumps({"error": "model 'b' not found"})), path="/api/show")
    with pytest.raises(Exception, match="not found"):
        module.create(here, "new", "b")
    assert [request.path for request, _ in httpserver.log] == ["/api/show"]


def test_a_model_is_made_with_parameters_of_its_own(httpserver, here):
    answers(httpserver, "{}", path="/api/show")
    seen = answers(httpserver, '{"status": "success"}', path="/api/create")
    module.create(here, "new", "b", system="s", temperature=0.9, __pub_fun="ollama.create")
    assert seen == [{"model": "new", "stream": True, "from": "b", "system": "s", "parameters": {"temperature": 0.9}}]


def test_a_load_test_goes_to_own_hosts_and_its_failure_is_an_exit_code(httpserver, here):
    answers(httpserver, GOOD)
    result = module.load_test(here, "m", count=2, concurrency=1)
    assert (result["succeeded"], module.__context__["retcode"]) == (2, 0)
    assert "2 of 2 requests answered" in module.load_test(here, "m", count=2, concurrency=1, out="table")
    with pytest.raises(Exception, match="own hosts only"):
        module.load_test("http://192.0.2.30:11434", "m")
    httpserver.clear()
    answers(httpserver, (500, "{}"))
    assert module.load_test(here, "m", count=1, concurrency=1)["retcode"] == 1
    assert module.__context__["retcode"] == 1
