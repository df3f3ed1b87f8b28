"""What is measured where, and that what is measured is true: against a server with programmed times."""

from __future__ import annotations

import json
import math
import statistics
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
import yaml

from aiplatform import measure, measure_run
from aiplatform.errors import PlatformError
from aiplatform.measure import Installed, Job, Task
from aiplatform.ollama import Chunk, Client, InstanceDown, OllamaError

CONDITIONS = {"suite": "s", "ollama_version": "0", "hardware": "h", "num_ctx": 1024, "num_thread": 2}
SLOTS = {
    1: {"instance": "node1", "kind": "general"},
    3: {"instance": "node0", "kind": "coding"},
}


@pytest.fixture
def settings(checkout):
    return yaml.safe_load((checkout / "salt/benchmark/defaults.yaml").read_text())["benchmark"]


@pytest.fixture
def suite(checkout):
    return yaml.safe_load((checkout / "benchmarks/models/suite.yaml").read_text())


@pytest.fixture
def pillar(settings):
    return {"benchmark": settings, "slots": SLOTS, "aliases": {"coder-32k": {}, "llama-family": {}}}


def plan(pillar, *installed: Installed, records=None, conditions=None) -> measure.Plan:
    everywhere = conditions or {"node1": CONDITIONS, "node0": CONDITIONS}
    return measure.plan(installed, records or {}, pillar, everywhere)


def record(model: str, instance: str = "node1", **more) -> dict:
    figures = {"tokens_per_second": 9.0, "ttft_ms": 100.0, "coding_quality": 0.5, "general_quality": 0.5}
    return {"model": model, "instance": instance, "kind": "general", "samples": {}} | CONDITIONS | figures | more


# -- what to measure ----------------------------------------------------------------------------------------------


def test_each_model_is_measured_where_it_would_serve(pillar):
    pillar["benchmark"]["category_overrides"] = {"plain:1": "coding"}
    found = plan(pillar, Installed("g:1", 1, "a"), Installed("x-Coder:1", 1, "b"), Installed("plain:1", 1, "c"))
    assert {task.model: task.instance for task in found.tasks} == {
        "g:1": "node1", "x-Coder:1": "node0", "plain:1": "node0"
    }  # fmt: skip


def test_aliases_duplicates_and_embedding_models_are_left_out(pillar):
    pillar["benchmark"]["skip_aliases"] = ["old-alias"]
    found = plan(
        pillar,
        Installed("m:latest", 1, "a"),
        Installed("m:7b", 1, "a"),
        Installed("coder-32k:latest", 1, "b"),
        Installed("Old-Alias", 1, "b"),
        Installed("slot-1:latest", 1, "b"),
        Installed("embedder:1", 1, "c", answers=False),
    )
    assert [task.model for task in found.tasks] == ["m:7b"]
    assert found.skipped["m:latest"] == "same weights as m:7b (sha256:a)"
    assert found.skipped["embedder:1"] == "answers no prompts"
    assert {found.skipped[name] for name in ("coder-32k:latest", "Old-Alias", "slot-1:latest")} == {"an alias"}


def test_named_models_only(pillar):
    pillar["benchmark"]["models"] = ["B:1"]
    found = plan(pillar, Installed("a:1", 1, "a"), Installed("b:1", 1, "b"))
    assert [task.model for task in found.tasks] == ["b:1"]
    assert found.skipped == {"a:1": "not among benchmark:models"}


def test_unknown_named_model_is_refused(pillar):
    pillar["benchmark"]["models"] = ["c:1"]
    with pytest.raises(PlatformError, match=r"installed models: a:1; actual: c:1"):
        plan(pillar, Installed("a:1", 1, "a"))


def test_what_is_known_is_kept(pillar):
    found = plan(pillar, Installed("a:1", 1, "a"), records={"a": record("a:1")})
    assert found.tasks == ()
    assert found.kept == ("a:1",)


@pytest.mark.parametrize("key", measure.CONDITIONS)
def test_other_conditions_are_measured_again(pillar, key):
    found = plan(pillar, Installed("a:1", 1, "a"), records={"a": record("a:1", **{key: "other"})})
    assert [task.model for task in found.tasks] == ["a:1"]


def test_other_weights_other_instance_and_fresh_are_measured_again(pillar):
    assert plan(pillar, Installed("a:1", 1, "b"), records={"a": record("a:1")}).tasks
    assert plan(pillar, Installed("a:1", 1, "a"), records={"a": record("a:1", instance="node0")}).tasks
    pillar["benchmark"]["fresh"] = True
    assert plan(pillar, Installed("a:1", 1, "a"), records={"a": record("a:1")}).tasks


def test_unfinished_record_is_not_known(pillar):
    unfinished = record("a:1")
    del unfinished["ttft_ms"]
    assert plan(pillar, Installed("a:1", 1, "a"), records={"a": unfinished}).tasks


def test_measured_kind_decides_the_instance(pillar):
    found = plan(pillar, Installed("a:1", 1, "a"), records={"a": record("a:1", kind="coding", instance="node0")})
    assert found.kept == ("a:1",)


# -- one answer: a server with programmed times -------------------------------------------------------------------


class Truth(ThreadingHTTPServer):
    """Streams the programmed (seconds to wait, piece) pairs as answer to every request."""

    daemon_threads = True

    def __init__(self, script):
        self.script = script
        self.bodies: list[dict] = []
        self.sent: list[tuple[float, dict]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request, client_address):
        """Clients hang up in the middle here; that is no error."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._send(b'{"version": "0"}')

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.sent = []
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        started = time.monotonic()
        due = 0.0
        for wait, piece in self.server.script:
            due += wait
            time.sleep(max(0.0, started + due - time.monotonic()))
            line = json.dumps(piece).encode() + b"\n"
            self.server.sent.append((time.monotonic() - started, piece))
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, content: bytes):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def truth(script):
    server = Truth(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    patience = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)  # both ends live in this process: neither may keep the interpreter from the other
    client = Client(server.url)
    client.version()  # the connection is made before anything is timed, as in a run
    try:
        yield server, client
    finally:
        sys.setswitchinterval(patience)
        client.close()
        server.shutdown()
        server.server_close()
        thread.join()


def piece(text: str) -> dict:
    return {"response": text, "done": False}


END = {"response": "", "done": True, "done_reason": "stop", "eval_count": 4, "eval_duration": 200_000_000}
GAP = 0.05
SCRIPTS = {
    "plain": [(0.25, piece("a")), (GAP, piece("b")), (GAP, piece("c")), (GAP, piece("d")), (0.0, END)],
    "several tokens a piece": [(0.25, piece("a b")), (GAP, piece("c d")), (GAP, piece("e")), (0.0, END)],
    "empty first pieces": [(0.0, piece("")), (0.1, piece("")), (0.15, piece("a")), (GAP, piece("b")), (0.0, END)],
    "thinking": [(0.25, {"response": "", "thinking": "hm", "done": False}), (GAP, piece("a")), (0.0, END)],
    "text in the last piece": [(0.25, END | {"response": "a"})],
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_times_are_those_of_the_truth(script):
    """Within 1 ms or 1 % of when the server really sent; the best of ten tries, since other work delays both ends."""
    best = [math.inf, math.inf]
    with truth(script) as (server, client):
        for _ in range(10):
            sample = measure.ask(client, "m:1", "Hi", {}, 10)
            assert sample.tokens_per_second == pytest.approx(20)
            times = [1000 * at for at, sent in server.sent if sent.get("response") or sent.get("thinking")]
            gap = statistics.median(b - a for a, b in pairwise(times)) if len(times) > 1 else None
            errors = [abs(sample.ttft_ms - times[0]), abs(sample.gap_ms - gap) if gap else 0.0]
            best = [min(pair) for pair in zip(best, errors, strict=True)]
            if best[0] <= max(1.0, 0.01 * times[0]) and best[1] <= 1.0:
                return
    raise AssertionError(best)


def test_rate_without_counts_comes_from_the_pieces():
    script = [*SCRIPTS["plain"][:-1], (0.0, {"response": "", "done": True})]
    with truth(script) as (_, client):
        sample = measure.ask(client, "m:1", "Hi", {}, 10)
    assert sample.tokens == 4
    assert sample.tokens_per_second == pytest.approx(1 / GAP, rel=0.2)


def test_chunks_alone_give_exact_figures():
    chunks = [Chunk(0.25, piece("")), Chunk(0.5, piece("a")), Chunk(0.75, piece("b")), Chunk(1.0, END)]
    sample = measure.answered(iter(chunks))
    assert (sample.ttft_ms, sample.gap_ms, sample.text) == (500.0, 250.0, "ab")
    assert (sample.tokens, sample.tokens_per_second, sample.finished) == (4, 20.0, "stop")


def test_nothing_said_is_no_first_token():
    sample = measure.answered([Chunk(0.1, END | {"eval_count": 0})])
    assert (sample.ttft_ms, sample.text, sample.tokens_per_second) == (None, "", 0.0)


def test_request_is_deterministic_and_does_not_think():
    with truth(SCRIPTS["text in the last piece"]) as (server, client):
        measure.ask(client, "m:1", "Hi", {"seed": 42}, 10)
    assert server.bodies == [
        {"model": "m:1", "prompt": "Hi", "stream": True, "think": False, "options": {"seed": 42}}
    ]  # fmt: skip


def test_timeout_is_a_failed_sample():
    with truth([(0.0, piece("a")), (0.6, END)]) as (_, client):
        sample = measure.ask(client, "m:1", "Hi", {}, 0.3)
    assert sample.text is None
    assert "0.3 s" in sample.error


def test_a_dead_instance_is_no_verdict_on_the_model():
    with truth([(0.0, END)]) as (server, _):
        url = server.url
    with pytest.raises(InstanceDown):
        measure.ask(Client(url), "m:1", "Hi", {}, 1)


# -- one model ----------------------------------------------------------------------------------------------------


class Fake:
    """An instance that answers from a table; counts what it is asked."""

    def __init__(self, answers=None, broken=(), load_error=None):
        self.answers = answers or {}
        self.broken = broken
        self.load_error = load_error
        self.asked: list[str] = []
        self.calls: list[str] = []
        self.options: list[dict] = []

    def health(self):
        return True

    def load(self, model, *, options, keep_alive, limits):
        self.calls.append(f"load {model}")
        self.options.append(dict(options))
        if self.load_error:
            raise OllamaError(self.load_error)

    def unload(self, model, **_):
        self.calls.append(f"unload {model}")

    def generate(self, model, prompt, *, limits, **fields):
        self.asked.append(prompt)
        self.options.append(fields["options"])
        if any(word in prompt for word in self.broken):
            raise OllamaError("no")
        yield Chunk(0.2, {"response": self.answers.get(prompt, "text")})
        yield Chunk(0.3, {"response": "", "done": True, "eval_count": 10, "eval_duration": 1_000_000_000})


@pytest.fixture
def job(suite, settings):
    task = Task("m:1", "node1", 10**9, "a" * 64)
    return Job(task, suite, settings, CONDITIONS, {"num_ctx": 1024, "num_thread": 2})


def test_a_record_has_all_figures_and_conditions(job):
    kept = []
    fake = Fake()
    found = measure.run(fake, job, None, lambda partial: kept.append(len(partial["samples"])))
    assert kept == [1, 2, 3, 4, 5, 6, 7]
    assert (found["tokens_per_second"], found["ttft_ms"], found["kind"]) == (10.0, 200.0, "general")
    assert found.items() >= CONDITIONS.items()
    assert fake.calls == ["load m:1", "unload m:1"]


def test_every_request_carries_the_options_that_were_loaded(job):
    fake = Fake()
    measure.run(fake, job, None, lambda _: None)
    assert all(options.items() >= {"num_ctx": 1024, "num_thread": 2}.items() for options in fake.options)
    assert fake.options[-1] == {"num_ctx": 1024, "num_thread": 2, "num_predict": 500, "temperature": 0, "seed": 42}


def test_latency_prompt_is_never_asked_twice_in_a_row(job):
    fake = Fake()
    measure.run(fake, job, None, lambda _: None)
    assert fake.asked.count("Hi") == 3
    assert ("Hi", "Hi") not in pairwise(fake.asked)
    assert fake.asked[0] != "Hi"


def test_latency_is_not_in_the_rate(job, suite):
    fake = Fake(broken=["Hi"])
    found = measure.run(fake, job, None, lambda _: None)
    assert found["ttft_ms"] == 9999.0
    assert found["tokens_per_second"] == 10.0


def test_a_prompt_that_fails_lowers_rate_and_quality(job, suite):
    good = dict.fromkeys((prompt["prompt"] for prompt in suite["prompts"].values()), "Answer: 9\n\n- a\n" + "x" * 900)
    whole = measure.run(Fake(good), job, None, lambda _: None)
    part = measure.run(Fake(good, broken=["apples"]), job, None, lambda _: None)
    assert whole["general_quality"] == pytest.approx(1)
    assert part["general_quality"] == pytest.approx(2 / 3)
    assert part["tokens_per_second"] == pytest.approx(10 * 5 / 6)


def test_an_interrupted_run_goes_on(job):
    kept = []

    def stop_after_three(partial):
        kept.append({**partial, "samples": dict(partial["samples"])})
        if len(kept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure.run(Fake(), job, None, stop_after_three)
    fake = Fake()
    found = measure.run(fake, job, kept[-1], lambda _: None)
    assert len(fake.asked) == 4
    assert len(found["samples"]) == 7


def test_leftovers_of_other_conditions_do_not_count(job):
    old = {"model": "m:1", "instance": "node1", **CONDITIONS, "suite": "old", "samples": {"latency": {"ttft_ms": 1}}}
    assert measure.run(Fake(), job, old, lambda _: None)["ttft_ms"] == 200.0


def test_a_model_that_cannot_be_loaded_is_reported(job):
    fake = Fake(load_error="requires more memory")
    found = measure.run(fake, job, None, lambda _: None)
    assert found["failed"] == "cannot be loaded: requires more memory"
    assert (found["tokens_per_second"], found["ttft_ms"], found["coding_quality"]) == (0.0, 9999.0, 0.0)
    assert fake.asked == []


def test_rows_have_no_answers(job):
    found = measure.run(Fake(), job, None, lambda _: None)
    assert not measure.row(found).keys() & {"samples", "kind"}
    assert measure.complete({"a": found, "b": {"model": "x", "samples": {}}}) == [measure.row(found)]


# -- a run --------------------------------------------------------------------------------------------------------


def make_run(fakes, suite, settings, keep=lambda task, record: None):
    return measure_run.Run(
        fakes, lambda task: Job(task, suite, settings, CONDITIONS, {}), keep
    )  # fmt: skip


def test_instances_work_side_by_side(suite, settings):
    meeting = threading.Barrier(2, timeout=5)

    class Meeting(Fake):
        def load(self, model, **more):
            meeting.wait()  # passes only when both instances are at work

    fakes = {"node1": Meeting(), "node0": Meeting()}
    tasks = [Task("g:1", "node1", 1, "a"), Task("x-coder:1", "node0", 1, "b")]
    done = make_run(fakes, suite, settings).measure(tasks, {}, SLOTS)
    assert {name: record["instance"] for name, record in done.items()} == {"g:1": "node1", "x-coder:1": "node0"}
    assert all("measured_at" in record for record in done.values())


def test_one_request_at_a_time(suite, settings):
    class Single(Fake):
        busy = False

        def generate(self, *args, **more):
            assert not self.busy
            self.busy = True
            yield from super().generate(*args, **more)
            self.busy = False

    fakes = {"node1": Single()}
    make_run(fakes, suite, settings).measure([Task("a:1", "node1", 1, "a"), Task("b:1", "node1", 1, "b")], {}, SLOTS)
    assert fakes["node1"].calls == ["load a:1", "unload a:1", "load b:1", "unload b:1"]


def test_a_model_is_measured_again_where_it_turns_out_to_serve(suite, settings):
    code = "```python\nimport x\ndef f() -> int:\n    '''d'''\n    return 1\ndef test_f():\n    assert f()\n```"
    coding = [prompt["prompt"] for prompt in suite["prompts"].values() if prompt["category"] == "coding"]
    answers = dict.fromkeys(coding, code)
    fakes = {"node1": Fake(answers), "node0": Fake(answers)}
    done = make_run(fakes, suite, settings).measure([Task("m:1", "node1", 1, "a")], {}, SLOTS)
    assert done["m:1"]["kind"] == "coding"
    assert done["m:1"]["instance"] == "node0"
    assert fakes["node0"].calls == ["load m:1", "unload m:1"]


def test_what_stops_a_thread_is_raised_and_the_rest_is_kept(suite, settings):
    class Dies(Fake):
        def generate(self, model, prompt, **more):
            if model == "b:1":
                raise InstanceDown("gone")
            yield from super().generate(model, prompt, **more)

        def health(self):
            return False

    kept = {}
    run = make_run({"node1": Dies()}, suite, settings, lambda task, record: kept.update({task.model: record}))
    with pytest.raises(InstanceDown):
        run.measure([Task("a:1", "node1", 1, "a"), Task("b:1", "node1", 1, "b")], {}, SLOTS)
    assert "measured_at" in kept["a:1"]
