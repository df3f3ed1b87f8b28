"""The benchmark's runner: reports, history, comparisons, and settings for one run alone."""

from __future__ import annotations

import contextlib
import json
import types
from datetime import UTC, datetime

import pytest

from _runners import benchmark as runner
from aiplatform import report_files, settings
from aiplatform.errors import PlatformError

FIRST, SECOND = "20260101T000000", "20260102T000000"


@pytest.fixture
def master(checkout, tmp_path, monkeypatch):
    """The runner on a master that has one host; ``measure`` sets what it has measured, and when it is."""
    pillar = settings.effective(
        {"platform": {"hosts": {"one": {"address": "192.0.2.1", "roles": ["ai_server"]}}}}, checkout / "salt"
    )
    pillar["benchmark"]["report_dir"] = str(tmp_path / "reports")
    master = types.SimpleNamespace(rows=[], asked=[], reports=tmp_path / "reports", now=datetime.now(UTC))
    master.selection = tmp_path / settings.SELECTION_FILE
    state = {"x": {"result": True, "changes": {}, "comment": "", "__id__": "x", "name": "x"}}

    def execute(hosts, function, arg=(), **kwargs):
        master.asked.append((function, kwargs.get("kwarg")))
        answers = {"benchmark.results": {"models": master.rows, "skipped": {}}, "state.apply": state}
        if isinstance(function, list):  # several at once
            assert len(arg) == len(function)
            return {host: {name: answers[name] for name in function} for host in hosts}
        return {host: answers.get(function, {}) for host in hosts}

    def measure(when: str, **speeds: float) -> dict:
        master.now = datetime.strptime(when, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
        figures = {"coding_quality": 0.7, "general_quality": 0.8, "ttft_ms": 500.0, "measured_at": when}
        master.rows = [
            {"model": f"{name}:1", "weights_digest": name, "tokens_per_second": speed} | figures
            for name, speed in speeds.items()
        ]
        master.asked.clear()
        return runner.choose()

    master.measure = measure
    monkeypatch.setattr(runner.settle, "datetime", types.SimpleNamespace(now=lambda _: master.now))
    opts = {"pillar_roots": {"base": [str(tmp_path)]}, "file_roots": {"base": [str(checkout / "salt")]}}
    monkeypatch.setattr(runner, "__opts__", opts, raising=False)
    monkeypatch.setattr(runner, "__salt__", {"salt.execute": execute}, raising=False)
    monkeypatch.setattr(runner, "__context__", {}, raising=False)

    def loaded(_):
        return pillar | {"selection": settings.selection([str(tmp_path)])}

    monkeypatch.setattr(runner.settings, "load", loaded)
    monkeypatch.setattr(runner.measure_progress, "shown", lambda _: contextlib.nullcontext())
    # What the plots look like is tests/unit/test_report.py.
    monkeypatch.setattr(report_files.plots, "find_spec", lambda _: None)
    return master


def test_a_report_is_pages_and_their_data(master):
    master.measure(FIRST, a=20.0)
    master.measure(SECOND, a=25.0)
    answer = runner.report()
    assert answer["report"] == str(master.reports / f"benchmark_{SECOND}.md")
    assert answer["html"] == str(master.reports / f"benchmark_{SECOND}.html")
    assert answer["data"] == json.loads((master.reports / f"benchmark_{SECOND}.json").read_text())
    assert [point["tokens_per_second"] for point in answer["data"]["history"]["a:1"]] == [20.0, 25.0]
    assert runner.report(FIRST)["data"]["slots"][0]["model"] == "a:1"


def test_lost_pages_are_made_again(master):
    master.measure(FIRST, a=20.0)
    page = master.reports / f"benchmark_{FIRST}.html"
    before = page.read_text()
    page.unlink()
    runner.report()
    assert page.read_text() == before


def test_history_has_each_measurement_and_its_drift(master):
    master.measure(FIRST, a=20.0, b=10.0)
    master.measure(SECOND, a=20.2, b=15.0)
    answer = runner.history()
    assert [point["tokens_per_second"] for point in answer["a:1"]["points"]] == [20.0, 20.2]
    assert answer["a:1"]["points"][1]["drift"] == {}
    assert answer["b:1"]["points"][1]["drift"]["tokens_per_second"] == 5.0
    assert runner.history("b:1").keys() == {"b:1"}


@pytest.mark.parametrize("content", ["{", '{"format": 0}'])
def test_an_earlier_run_that_cannot_be_read_is_named_and_left_out(master, caplog, content):
    master.measure(FIRST, a=20.0)
    (master.reports / f"benchmark_{FIRST}.json").write_text(content)
    assert runner.history() == {}
    answer = master.measure(SECOND, a=25.0)
    assert answer["changes"]
    assert f"benchmark_{FIRST}.json" in caplog.text
    points = runner.report()["data"]["history"]["a:1"]
    assert [point["run"] for point in points] == ["2026-01-02T00:00:00+00:00"]


def test_a_choice_whose_report_fails_is_not_made(master, monkeypatch):
    def full(*_):
        raise PlatformError("The report cannot be written")

    with monkeypatch.context() as broken:
        broken.setattr(report_files, "write", full)
        assert master.measure(FIRST, a=20.0)["comment"] == "The report cannot be written"
    assert not master.selection.exists()
    assert runner.choose()["changes"]["slot1_general"] == {"old": None, "new": "a:1"}
    assert len(list(master.reports.glob("*.json"))) == 1


def test_the_last_two_runs_are_compared_or_those_that_are_named(master):
    master.measure(FIRST, a=20.0)
    assert "Two runs are needed" in runner.compare()["comment"]
    assert runner.__context__["retcode"] == 1
    master.measure(SECOND, a=25.0)
    assert runner.compare()["drift"] == ["a:1"]
    backwards = runner.compare(SECOND, FIRST)
    assert backwards["models"]["a:1"]["drift"]["tokens_per_second"] == -5.0


def test_an_incumbent_survives_noise_through_the_files(master):
    master.measure(FIRST, a=20.0, b=19.0)
    answer = master.measure(SECOND, a=19.0, b=20.0)
    assert (answer["selection"]["slot1_general"], answer["selection"]["slot2_general"]) == ("a:1", "b:1")
    assert "a:1 stays: b:1 ranks higher" in answer["selection"]["kept"]["slot1_general"]
    assert "a:1 stays: b:1 ranks higher" in (master.reports / f"benchmark_{SECOND}.md").read_text()
    assert runner.choose()["changes"] == {}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: runner.report("1999"), "one of 20260101T000000"),
        (lambda: runner.compare("1999", FIRST), "one of 20260101T000000"),
        (lambda: runner.compare(FIRST), "Two runs are needed"),
        (lambda: runner.history("z:1"), "No run has measured this model"),
        (lambda: runner.run(thresholds={"min_tokens_per_sec": -1}), "benchmark.thresholds.min_tokens_per_sec: is -1"),
        (lambda: runner.run(tresholds={}), "tresholds"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(master, call, text):
    master.measure(FIRST, a=20.0)
    master.asked.clear()
    answer = call()
    assert answer["retcode"] == 1
    assert text in answer["comment"]
    assert master.asked == []


def test_settings_for_one_run_hold_for_measuring_and_choosing(master):
    master.measure(FIRST, a=4.0)
    assert runner.choose()["selection"]["slot1_general"] is None
    answer = runner.run(thresholds={"min_tokens_per_sec": 3}, large_timeout=1800, __pub_fun="benchmark.run")
    override = {"thresholds": {"min_tokens_per_sec": 3}, "large_timeout": 1800, "fresh": False}
    assert next(kwarg for function, kwarg in master.asked if function == "state.apply")["pillar"] == {
        "benchmark": override
    }
    assert answer["selection"]["slot1_general"] == "a:1"


def test_a_run_may_be_scored_by_execution(master):
    master.measure(FIRST, a=20.0)
    master.rows[0] |= {"coding_quality_markers": 0.7, "coding_quality_execution": 1.0}
    assert runner.choose()["selection"]["all_metrics"]["a:1"]["coding_quality"] == 0.7
    answer = runner.run(scoring="execution")
    assert answer["selection"]["all_metrics"]["a:1"]["coding_quality"] == 1.0
    assert runner.choose()["selection"]["all_metrics"]["a:1"]["coding_quality"] == 0.7
