"""What is measured where, and what a model's answers come to."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from aiplatform import measure, measure_model, measure_run
from aiplatform.errors import PlatformError
from aiplatform.measure import Installed, Task
from aiplatform.measure_model import Job
from aiplatform.ollama import InstanceDown
from tests.unit.measured import CONDITIONS, Fake, one_job, one_pass, the_suite

SLOTS = {
    1: {"instance": "node1", "kind": "general"},
    3: {"instance": "node0", "kind": "coding"},
}


@pytest.fixture
def settings(checkout):
    return one_pass(checkout)


@pytest.fixture
def suite(checkout):
    return the_suite(checkout)


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
    pillar["benchmark"]["skip_aliases"] = ["old-alias", "other:latest", "codellama:34b"]
    found = plan(
        pillar,
        Installed("m:latest", 1, "a"),
        Installed("m:7b", 1, "a"),
        Installed("coder-32k:latest", 1, "b"),
        Installed("Old-Alias", 1, "b"),
        Installed("other", 1, "d"),
        Installed("codellama:34b", 1, "e"),
        Installed("slot-1:latest", 1, "b"),
        Installed("embedder:1", 1, "c", answers=False),
    )
    assert [task.model for task in found.tasks] == ["m:7b"]
    assert found.skipped["m:latest"] == "same weights as m:7b (sha256:a)"
    unwanted = {found.skipped[name] for name in ("Old-Alias", "other", "codellama:34b")}
    assert unwanted == {"named in benchmark:skip_aliases"}
    assert found.skipped["embedder:1"] == "answers no prompts"
    assert {found.skipped[name] for name in ("coder-32k:latest", "slot-1:latest")} == {"an alias"}


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


@pytest.fixture
def job(suite, settings):
    return one_job(suite, settings)


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


def test_a_model_does_not_stay_loaded_whatever_ends_its_measurement(job):
    def full(_):
        raise OSError("no space left on device")

    fake = Fake()
    with pytest.raises(OSError, match="no space"):
        measure_model.run(fake, job, None, full)
    assert fake.calls == ["load m:1", "unload m:1"]
    # Nobody unloads after a run that is killed.
    assert 0 < fake.keep_alive < 3600
    # One that still answers what has timed out takes its time to go.
    assert fake.patience == job.settings["load_timeout"]


def test_leftovers_of_other_conditions_do_not_count(job):
    old = {"model": "m:1", "instance": "node1", **CONDITIONS, "suite": "old", "samples": {"latency": {"ttft_ms": 1}}}
    assert measure_model.run(Fake(), job, old, lambda _: None)["ttft_ms"] == 200.0


def test_a_model_that_cannot_be_loaded_is_reported(job):
    fake = Fake(load_error="requires more memory")
    found = measure_model.run(fake, job, None, lambda _: None)
    assert found["failed"].startswith("cannot be loaded: requires more memory")
    assert (found["tokens_per_second"], found["ttft_ms"], found["coding_quality"]) == (0.0, 9999.0, 0.0)
    assert fake.asked == []


def test_rows_have_no_answers(job):
    found = measure_model.run(Fake(), job, None, lambda _: None)
    row = measure.row(found, job.settings)
    assert not row.keys() & {"samples", "kind", "executed", "wall_s", "model_s"}
    assert measure.complete({"a": found, "b": {"model": "x", "samples": {}}}, job.settings) == [row]


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


def test_what_stops_one_instance_is_told_when_the_other_has_unloaded_too(suite, settings):
    loaded = threading.Event()

    class Dies(Fake):
        def generate(self, model, prompt, **more):
            assert loaded.wait(5)
            raise InstanceDown("gone")

        def health(self):
            return False

    class Answers(Fake):
        def generate(self, model, prompt, **more):
            loaded.set()
            assert run._stop.wait(5)
            yield from super().generate(model, prompt, **more)

    fakes = {"node1": Dies(), "node0": Answers()}
    tasks = [Task("g:1", "node1", 1, "a"), Task("x-coder:1", "node0", 1, "b"), Task("y-coder:1", "node0", 1, "c")]
    run = make_run(fakes, suite, settings)
    with pytest.raises(InstanceDown):
        run.measure(tasks, {}, SLOTS)
    assert fakes["node0"].calls == ["load x-coder:1", "unload x-coder:1"]
    assert len(fakes["node0"].asked) == 1
