"""What is measured where, and what a model's answers come to."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import yaml

from aiplatform import measure, measure_model, measure_run
from aiplatform.errors import PlatformError
from aiplatform.measure import Installed, Task
from aiplatform.measure_code import Verdict
from aiplatform.measure_memory import Roofline
from aiplatform.measure_model import Job
from aiplatform.ollama import Chunk, InstanceDown, OllamaError

CONDITIONS = {"suite": "s", "ollama_version": "0", "hardware": "h", "num_ctx": 1024, "num_thread": 2}
SLOTS = {
    1: {"instance": "node1", "kind": "general"},
    3: {"instance": "node0", "kind": "coding"},
}


@pytest.fixture
def settings(checkout):
    found = yaml.safe_load((checkout / "salt/benchmark/defaults.yaml").read_text())["benchmark"]
    return found | {"repeats": 1}


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
    return (
        {"model": model, "instance": instance, "kind": "general", "samples": {}, "repeats": [{}]}
        | CONDITIONS
        | figures
        | more
    )


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


def test_the_embedding_model_that_an_alias_keeps_is_the_aliases(pillar):
    pillar["aliases"]["embedding"] = {"model": "Embedder:1"}
    assert plan(pillar, Installed("embedder:1", 1, "c", answers=False)).skipped == {"embedder:1": "an alias"}
    assert plan(pillar, Installed("embedder:1", 1, "c")).skipped == {}


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
    coding = record("a:1", coding_quality=0.8, instance="node0")
    assert plan(pillar, Installed("a:1", 1, "a"), records={"a": coding}).kept == ("a:1",)


def test_missing_passes_are_still_to_be_made(pillar):
    pillar["benchmark"]["repeats"] = 2
    assert plan(pillar, Installed("a:1", 1, "a"), records={"a": record("a:1")}).tasks
    assert not plan(pillar, Installed("a:1", 1, "a"), records={"a": record("a:1", repeats=[{}, {}])}).tasks
    assert not plan(pillar, Installed("a:1", 1, "a"), records={"a": record("a:1", repeats=[], failed="no")}).tasks


def test_a_score_by_execution_needs_an_execution(pillar):
    pillar["benchmark"]["scoring"] = "execution"
    assert plan(pillar, Installed("a:1", 1, "a"), records={"a": record("a:1")}).tasks
    executed = record("a:1", coding_quality_execution=1.0, coding_quality=0.5, instance="node0")
    found = plan(pillar, Installed("a:1", 1, "a"), records={"a": executed})
    # What its code does makes it a coding model, whose instance the record is from.
    assert found.kept == ("a:1",)


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
    found = measure_model.run(fake, job, None, lambda partial: kept.append(len(partial["samples"])))
    assert kept == [1, 2, 3, 4, 5, 6, 7]
    assert (found["tokens_per_second"], found["ttft_ms"], found["kind"]) == (10.0, 200.0, "general")
    assert found.items() >= CONDITIONS.items()
    assert fake.calls == ["load m:1", "unload m:1"]


def test_every_request_carries_the_options_that_were_loaded(job):
    fake = Fake()
    measure_model.run(fake, job, None, lambda _: None)
    assert all(options.items() >= {"num_ctx": 1024, "num_thread": 2}.items() for options in fake.options)
    assert fake.options[-1] == {"num_ctx": 1024, "num_thread": 2, "num_predict": 500, "temperature": 0, "seed": 42}


def test_latency_prompt_is_never_asked_twice_in_a_row(job):
    fake = Fake()
    measure_model.run(fake, job, None, lambda _: None)
    assert fake.asked.count("Hi") == 3
    assert ("Hi", "Hi") not in pairwise(fake.asked)
    assert fake.asked[0] != "Hi"


def test_latency_is_not_in_the_rate(job, suite):
    fake = Fake(broken=["Hi"])
    found = measure_model.run(fake, job, None, lambda _: None)
    assert found["ttft_ms"] == 9999.0
    assert found["tokens_per_second"] == 10.0


def test_a_prompt_that_fails_lowers_rate_and_quality(job, suite):
    good = dict.fromkeys((prompt["prompt"] for prompt in suite["prompts"].values()), "Answer: 9\n\n- a\n" + "x" * 900)
    whole = measure_model.run(Fake(good), job, None, lambda _: None)
    part = measure_model.run(Fake(good, broken=["apples"]), job, None, lambda _: None)
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
        measure_model.run(Fake(), job, None, stop_after_three)
    fake = Fake()
    found = measure_model.run(fake, job, kept[-1], lambda _: None)
    assert len(fake.asked) == 4
    assert len(found["samples"]) == 7


def test_leftovers_of_other_conditions_do_not_count(job):
    old = {"model": "m:1", "instance": "node1", **CONDITIONS, "suite": "old", "samples": {"latency": {"ttft_ms": 1}}}
    assert measure_model.run(Fake(), job, old, lambda _: None)["ttft_ms"] == 200.0


def test_a_model_that_cannot_be_loaded_is_reported(job):
    fake = Fake(load_error="requires more memory")
    found = measure_model.run(fake, job, None, lambda _: None)
    assert found["failed"] == "cannot be loaded: requires more memory"
    assert (found["tokens_per_second"], found["ttft_ms"], found["coding_quality"]) == (0.0, 9999.0, 0.0)
    assert fake.asked == []


def test_rows_have_no_answers(job):
    found = measure_model.run(Fake(), job, None, lambda _: None)
    row = measure.row(found, job.settings)
    assert not row.keys() & {"samples", "kind", "executed", "wall_s", "model_s"}
    assert measure.complete({"a": found, "b": {"model": "x", "samples": {}}}, job.settings) == [row]


# -- passes over the suite ----------------------------------------------------------------------------------------


class Slowing(Fake):
    """An instance whose rate falls with each answer."""

    def generate(self, model, prompt, **more):
        for chunk in super().generate(model, prompt, **more):
            if chunk.data.get("done"):
                chunk.data["eval_duration"] = 1_000_000_000 + 10_000_000 * len(self.asked)
            yield chunk


def test_each_pass_asks_everything_and_the_median_counts(job):
    job.settings["repeats"] = 3
    fake = Slowing()
    found = measure_model.run(fake, job, None, lambda _: None)
    assert len(found["samples"]) == 21
    assert list(found["samples"])[7:9] == ["latency 2", "code_gen 2"]
    rates = [one["tokens_per_second"] for one in found["repeats"]]
    assert rates == sorted(rates, reverse=True)
    assert found["tokens_per_second"] == rates[1]
    assert found["spread"]["tokens_per_second"] == [rates[2], rates[0]]
    assert fake.calls == ["load m:1", "unload m:1"]
    assert len(found["prompts"]["debug"]["tokens_per_second"]) == 3


def test_more_passes_go_on_from_the_ones_that_are_there(job):
    first = measure_model.run(Fake(), job, None, lambda _: None)
    job.settings["repeats"] = 2
    fake = Fake()
    found = measure_model.run(fake, job, first, lambda _: None)
    assert len([prompt for prompt in fake.asked if prompt == "Hi"]) == 3
    assert len(found["repeats"]) == 2
    job.settings["fresh"] = True
    fake = Fake()
    measure_model.run(fake, job, found, lambda _: None)
    assert fake.asked.count("Hi") == 6


def test_nothing_left_to_ask_loads_nothing(job):
    first = measure_model.run(Fake(), job, None, lambda _: None)
    fake = Fake()
    again = measure_model.run(fake, job, first, lambda _: None)
    assert fake.calls == []
    assert {key: again[key] for key in ("tokens_per_second", "ttft_ms", "overhead")} == {
        key: first[key] for key in ("tokens_per_second", "ttft_ms", "overhead")
    }  # fmt: skip


# -- a disturbed host ---------------------------------------------------------------------------------------------


def watched(job, *findings) -> Job:
    """The job on a host that is disturbed so during its first tests; afterwards it is quiet."""
    left = list(findings)
    watch = SimpleNamespace(disturbances=lambda: left.pop(0) if left else {})
    return measure_model.replace(job, watching=lambda: nullcontext(watch))


def test_a_disturbed_test_is_made_again(job):
    fake = Fake()
    found = measure_model.run(fake, watched(job, {"steal": 2.0}), None, lambda _: None)
    assert fake.asked.count("Hi") == 6
    assert (found["disturbed"], found["repeated"]) == ({}, 1)
    assert found["samples"]["latency"]["attempts"] == 2


def test_a_host_that_stays_disturbed_ends_the_repeating_and_is_noted(job):
    job.settings["disturbance"] = job.settings["disturbance"] | {"repeats": 2}
    fake = Fake()
    quiet = watched(job, {}, {"much steal": 3.0}, {"little steal": 1.5}, {"more steal": 2.0})
    found = measure_model.run(fake, quiet, None, lambda _: None)
    first = job.suite["prompts"]["code_gen"]["prompt"]
    assert fake.asked.count(first) == 3
    assert (first, first) not in pairwise(fake.asked)
    assert (found["disturbed"], found["repeated"]) == ({"code_gen": "little steal"}, 1)


def test_a_prompt_that_fails_is_not_asked_again_for_a_disturbance(job):
    fake = Fake(broken=["apples"])
    measure_model.run(fake, watched(job, *[{}] * 6, {"steal": 9.0}), None, lambda _: None)
    assert len([prompt for prompt in fake.asked if "apples" in prompt]) == 1


# -- code and memory ----------------------------------------------------------------------------------------------


def test_code_is_executed_once_for_each_answer_and_scored_as_asked(job):
    job.settings["repeats"] = 2
    runs = []

    def execute(tests, text):
        runs.append(tests["function"])
        return Verdict(tests["function"] == "merge_sort", "" if tests["function"] == "merge_sort" else "wrong")

    found = measure_model.run(Fake(), measure_model.replace(job, execute=execute), None, lambda _: None)
    assert runs == ["merge_sort", "average_positive", "paid_totals"]
    assert found["coding_quality_execution"] == pytest.approx(1 / 3)
    assert found["passed"] == {"code_gen": True, "debug": False, "refactor": False, "code_gen 2": True,
                               "debug 2": False, "refactor 2": False}  # fmt: skip
    assert measure.row(found, job.settings)["coding_quality"] == found["coding_quality_markers"] == 0.0
    executed = measure.row(found, job.settings | {"scoring": "execution"})
    assert executed["coding_quality"] == pytest.approx(1 / 3)
    assert [one["coding_quality"] for one in executed["repeats"]] == [pytest.approx(1 / 3)] * 2


def test_answers_that_are_kept_are_executed_without_asking_again(job):
    first = measure_model.run(Fake(), job, None, lambda _: None)
    assert first["coding_quality_execution"] is None
    assert "execution_note" not in first
    fake = Fake()
    executing = measure_model.replace(job, execute=lambda tests, text: Verdict(True))
    assert measure_model.run(fake, executing, first, lambda _: None)["coding_quality_execution"] == 1.0
    assert fake.calls == []


def test_running_the_code_has_a_figure_of_its_own(job, monkeypatch):
    """Its seconds show, add up over runs, and are no part of the benchmark's own work."""
    plain = measure_model.run(Fake(), job, None, lambda _: None)
    assert "execution_s" not in measure.row(plain, job.settings)
    clock = [0.0]

    def execute(tests, text):
        clock[0] += 2
        return Verdict(True)

    monkeypatch.setattr(measure_model.time, "monotonic", lambda: clock[0])
    executing = measure_model.replace(job, execute=execute)
    found = measure_model.run(Fake(), executing, plain, lambda _: None)
    assert measure.row(found, job.settings)["execution_s"] == 6
    assert found["overhead"] == plain["overhead"]
    # What has its verdict is not run again, and keeps its seconds.
    again = measure_model.run(Fake(), executing, found, lambda _: None)
    assert (again["execution_s"], clock[0]) == (6, 6)


def test_why_no_code_was_run_is_noted(job):
    silent = measure_model.replace(job, execution_note="this host is not run by systemd")
    found = measure_model.run(Fake(), silent, None, lambda _: None)
    assert measure.row(found, job.settings)["execution_note"] == "this host is not run by systemd"


def test_a_rate_is_shown_as_a_share_of_what_memory_allows(job):
    roofed = measure_model.replace(job, roofline=Roofline(20.0, 10**9, ""))
    found = measure_model.run(Fake(), roofed, None, lambda _: None)
    assert found["roofline"] == {"gigabytes_per_second": 20.0, "bytes_per_token": 10**9, "note": ""}
    assert found["roofline_share"] == 0.5


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
