"""The Ollama module's calls of models: by instance, alias or URL; counted for the whole host."""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest
from werkzeug import Response

from _modules import ollama as module
from aiplatform import instances, measure_progress, ollama, ollama_keys
from aiplatform.errors import NotFoundError, PlatformError
from tests.unit.test_calling import GOOD, answers
from tests.unit.test_ollama_client import SHOW, lines

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
    monkeypatch.setattr(module, "__opts__", {"file_client": "remote"}, raising=False)
    monkeypatch.setattr(module, "__salt__", {"event.send": Mock()}, raising=False)
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


@pytest.fixture
def https(tls, here, tmp_path, monkeypatch):
    """A server with TLS that wants a key, on a host that trusts its authority and has the key's file."""
    server, authority = tls
    url, file = server.url_for("").rstrip("/"), tmp_path / "key"
    file.write_text("sk-0815\n")
    file.chmod(0o600)
    monkeypatch.setitem(module.__salt__, "platform_ca.bundle", lambda: authority)
    monkeypatch.setitem(module.__pillar__["ollama"], "api_keys", {url: str(file)})
    server.expect_request("/api/version", headers={"Authorization": "Bearer sk-0815"}).respond_with_json(
        {"version": "1"}
    )
    server.expect_request("/api/generate", headers={"Authorization": "Bearer sk-0815"}).respond_with_data(GOOD)
    return url, file


def test_a_server_with_tls_is_trusted_as_the_host_does_and_shown_its_key(https, monkeypatch):
    url, _ = https
    assert module.version(f"{url}/") == "1"
    assert module.load_test(url, "m", count=1)["succeeded"] == 1
    monkeypatch.setitem(module.__salt__, "platform_ca.bundle", lambda: "/absent.crt")
    with pytest.raises(ollama.TlsFailed, match=r"cacert\.pem.*next: have this host trust"):
        module.version(url)


def test_no_other_server_is_shown_a_key(https, httpserver, here):
    httpserver.expect_request("/api/version").respond_with_json({"version": "2"})
    assert module.version(here) == "2"
    assert "Authorization" not in httpserver.log[0][0].headers
    assert ollama_keys.key_for(module.__pillar__, "https://example.com") is None
    assert ollama_keys.key_for(module.__pillar__, https[0].replace("https", "http")) is None


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [("sk-0815", 0o644, "mode 0644"), ("sk-0815\nX: y", 0o600, "one key on one line"), (None, 0o600, "No such file")],
)
def test_a_key_that_others_read_or_that_is_none_is_refused_untold(https, text, mode, why):
    url, file = https
    file.unlink()
    if text:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(PlatformError, match=why) as raised:
        module.version(url)
    assert "0815" not in str(raised.value)


def test_a_failed_call_is_counted_too(httpserver, here):
    answers(httpserver, (404, json.dumps({"error": "model 'm' not found"})))
    with pytest.raises(Exception, match=r"ollama\.pull"):
        module.generate(here, "m", "hi")
    assert 'outcome="ModelNotFound"} 1.0' in module.metrics()


@pytest.mark.parametrize("damage", ["file", "text"])
def test_metrics_that_cannot_be_written_cost_no_answer(httpserver, here, tmp_path, damage, caplog):
    answers(httpserver, GOOD, (404, json.dumps({"error": "model 'm' not found"})))
    if damage == "file":
        (tmp_path / "metrics").write_text("no folder")
    else:
        (tmp_path / "metrics").mkdir()
        (tmp_path / "metrics/ollama.prom").write_text("ollama_calls_total{")
    assert module.generate(here, "m", "hi")["text"] == "ab"
    assert "not counted in" in caplog.text
    with pytest.raises(ollama.ModelNotFound):
        module.generate(here, "m", "hi")


def test_a_chat_and_vectors(httpserver, here):
    answers(httpserver, '{"message": {"content": "x"}}\n{"done": true}\n', path="/api/chat")
    answers(httpserver, '{"embeddings": [[1.0]]}', path="/api/embed")
    assert module.chat(here, "m", [{"role": "user", "content": "hi"}])["text"] == "x"
    assert module.embed(here, "e", ["t"]) == [[1.0]]


def test_one_text_is_not_taken_apart_where_a_list_is_expected(httpserver, here):
    embedded = answers(httpserver, '{"embeddings": [[1.0]]}', path="/api/embed")
    asked = answers(httpserver, '{"response": "36"}\n{"done": true}\n')
    chatted = answers(httpserver, '{"message": {"content": "x"}}\n{"done": true}\n', path="/api/chat")
    module.embed(here, "e", "hello")
    module.extract(here, "m", "How old?", "Ada", {"type": "integer"})
    module.chat(here, "m", "hi")
    assert embedded[0]["input"] == ["hello"]
    assert "[1] Ada" in asked[0]["prompt"]
    assert chatted[0]["messages"] == [{"role": "user", "content": "hi"}]


def test_what_a_command_line_reads_as_no_text_is_sent_as_text(httpserver, here):
    embedded = answers(httpserver, '{"embeddings": [[1.0]]}', path="/api/embed")
    asked = answers(httpserver, '{"response": "36"}\n{"done": true}\n')
    module.embed(here, "e", 7)
    module.generate(here, "m", 36, system=True)
    module.extract(here, "m", 7, 36, {"type": "integer"})
    module.load_test(here, "m", 5, count=1)
    assert embedded[0]["input"] == ["7"]
    assert (asked[0]["prompt"], asked[0]["system"]) == ("36", "True")
    assert "[1] 36" in asked[1]["prompt"]
    assert asked[2]["prompt"] == "5"
    assert module.truncate(here, "m", 36) == "36"


ASK = [
    ("/api/generate", lambda here, **waits: module.generate(here, "m", "hi", **waits)),
    ("/api/chat", lambda here, **waits: module.chat(here, "m", "hi", **waits)),
    ("/api/embed", lambda here, **waits: module.embed(here, "m", "hi", **waits)),
    ("/api/generate", lambda here, **waits: module.extract(here, "m", "hi", "x", {}, **waits)),
]


@pytest.mark.parametrize(("path", "ask"), ASK)
def test_tries_are_the_calls_own(httpserver, here, path, ask):
    seen = answers(httpserver, (503, '{"error": "busy"}'), path=path)
    with pytest.raises(ollama.Busy):
        ask(here, tries=1, __pub_fun="ollama.x")
    assert len(seen) == 1


@pytest.mark.parametrize(("path", "ask"), ASK[:3])
def test_waits_are_the_calls_own(httpserver, here, hush, path, ask):
    httpserver.expect_request(path).respond_with_handler(lambda _: hush())
    with pytest.raises(ollama.Timeout, match=r"Silent for 0\.1 s"):
        ask(here, tries=1, first_token=0.1)
    with pytest.raises(ollama.Timeout, match=r"Not complete after 0\.1 s"):
        ask(here, tries=1, total=0.1)


@pytest.mark.parametrize("ask", [ask for _, ask in ASK])
def test_waits_that_are_none_are_refused(here, ask):
    with pytest.raises(ollama.RequestRefused, match="where: connect; expected: more than 0 seconds; actual: 0"):
        ask(here, connect=0)
    with pytest.raises(TypeError, match="totl"):
        ask(here, totl=5)


def test_an_answer_without_chance_is_kept_for_the_process(httpserver, here):
    httpserver.expect_request("/api/show").respond_with_json(SHOW)
    seen = answers(httpserver, GOOD)
    told = [module.generate(here, "m", "hi", options={"temperature": 0}) for _ in range(2)]
    assert [answer["cached"] for answer in told] == [False, True]
    assert len(seen) == 1


@pytest.mark.parametrize("move", [module.pull, module.push])
def test_a_transfer_may_have_an_end(httpserver, chunked, here, hush, move):
    def endless():
        yield '{"status": "moving"}\n'
        hush()

    httpserver.expect_request(f"/api/{move.__name__}").respond_with_handler(lambda _: Response(endless()))
    with pytest.raises(ollama.Timeout, match=r"Not complete after 0\.2 s"):
        move(here, "m", total=0.2)


@pytest.mark.parametrize(
    ("operation", "work"),
    [
        ("pull", lambda here: module.pull(here, "m")),
        ("push", lambda here: module.push(here, "m")),
        ("create", lambda here: module.create(here, "m", "b")),
    ],
)
def test_the_master_is_told_how_far_it_is(httpserver, here, operation, work, monkeypatch):
    answers(httpserver, "{}", path="/api/show")
    moving = {"status": "moving", "completed": 1, "total": 4}
    answers(httpserver, lines(moving, moving, {"status": "success"}), path=f"/api/{operation}")
    assert work(here) == {"status": "success"}
    told = [call.args for call in module.__salt__["event.send"].call_args_list]
    begin = {"operation": operation, "model": "m"}
    end = {"status": "success", "completed": None, "total": None}
    assert told == [("ai_platform/models/progress", begin | last) for last in (moving, end)]
    assert measure_progress.line(told[0][0], {"id": "ai", "data": told[0][1]}) == f"ai: {operation} m: moving 25 %"
    module.__salt__["event.send"].reset_mock()
    monkeypatch.setitem(module.__opts__, "file_client", "local")
    assert work(here) == {"status": "success"}
    module.__salt__["event.send"].assert_not_called()


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
