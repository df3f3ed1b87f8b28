"""Several passes over the suite, on a host that is disturbed, with code that is run and memory that sets a limit."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest

from aiplatform import measure, measure_model
from aiplatform.measure_code import Verdict
from aiplatform.measure_memory import Roofline
from aiplatform.measure_model import Job
from aiplatform.ollama import Timeout
from tests.unit.measured import CONDITIONS, Fake, one_job, one_pass, the_suite


@pytest.fixture
def job(checkout):
    return one_job(the_suite(checkout), one_pass(checkout))


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


# -- a limit that is raised ---------------------------------------------------------------------------------------


class Slow(Fake):
    """An instance that takes so many seconds for the prompt about apples, and for a load."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def load(self, model, *, limits, **more):
        super().load(model, limits=limits, **more)
        self._wait(limits)

    def generate(self, model, prompt, *, limits, **fields):
        if "apples" in prompt:
            self._wait(limits)
        yield from super().generate(model, prompt, limits=limits, **fields)

    def _wait(self, limits):
        if self.seconds > limits.total:
            raise Timeout(f"Not complete after {limits.total:g} s")


def current(record, settings) -> bool:
    return measure.is_current(record, "node1", CONDITIONS, settings)


def test_an_answer_that_ran_into_its_limit_is_asked_again_when_the_limit_is_raised(job):
    job.settings.update(small_timeout=10, load_timeout=30)
    executing = measure_model.replace(job, execute=lambda tests, text: Verdict(True))
    short = measure_model.run(Slow(20), executing, None, lambda _: None)
    assert (short["timed_out_s"], short["tokens_per_second"]) == (10, pytest.approx(10 * 5 / 6))
    assert current(short, job.settings)
    assert current(measure.row(short, job.settings), job.settings)
    job.settings["small_timeout"] = 15
    assert not current(measure.row(short, job.settings), job.settings)
    still = measure_model.run(Slow(20), executing, short, lambda _: None)
    assert (still["timed_out_s"], current(still, job.settings)) == (15, True)
    job.settings["small_timeout"] = 20
    fake = Slow(20)
    found = measure_model.run(fake, executing, still, lambda _: None)
    assert (len(fake.asked), found["tokens_per_second"]) == (1, 10)
    assert "timed_out_s" not in found
    job.settings["small_timeout"] = 900
    assert current(found, job.settings)


def test_a_verdict_on_code_goes_with_the_answer(job):
    job.settings["small_timeout"] = 10
    failed = {"latency": {"ttft_ms": 1.0}, "debug": {"error": "Not complete", "timed_out_s": 5.0}}
    verdicts = {"debug": {"passed": False, "why": ""}, "code_gen": {"passed": True, "why": ""}}
    old = {"instance": "node1", **CONDITIONS, "samples": failed | {"code_gen": {"text": "x"}}, "executed": verdicts}
    assert job.begun(old)["executed"] == {"code_gen": verdicts["code_gen"]}


def test_a_load_that_ran_into_its_limit_is_tried_again_when_the_limit_is_raised(job):
    job.settings["load_timeout"] = 10
    failed = measure_model.run(Slow(20), job, None, lambda _: None)
    assert (failed["timed_out_s"], current(failed, job.settings)) == (10, True)
    # The limit of a prompt is another one.
    assert current(failed, job.settings | {"small_timeout": 900})
    job.settings["load_timeout"] = 20
    assert not current(failed, job.settings)
    found = measure_model.run(Slow(20), job, failed, lambda _: None)
    assert found.keys().isdisjoint({"failed", "timed_out_s"})


def test_what_an_earlier_version_noted_without_the_limit_stays(job):
    old = measure_model.run(Fake(broken=["apples"]), job, None, lambda _: None)
    assert current(old, job.settings | {"small_timeout": 900})
    refused = measure_model.run(Fake(load_error="requires more memory"), job, None, lambda _: None)
    assert current(refused, job.settings | {"load_timeout": 900})


# -- a disturbed host ---------------------------------------------------------------------------------------------


def watched(job, *findings) -> Job:
    """The job on a host that is disturbed so during its first tests; afterwards it is quiet."""
    left = list(findings)
    watch = SimpleNamespace(disturbances=lambda: left.pop(0) if left else {})
    return measure_model.replace(job, watching=lambda _: nullcontext(watch))


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
