"""The report's text, the selection file, and what is said about their changes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
import yaml

from aiplatform import choice, measure_progress, report, selection
from aiplatform.errors import PlatformError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def pillar(checkout):
    formulas = ("benchmark", "models", "ollama")
    defaults = [yaml.safe_load((checkout / f"salt/{name}/defaults.yaml").read_text()) for name in formulas]
    return defaults[0] | defaults[1] | defaults[2]


def row(model: str, tps: float = 20, **more) -> dict:
    figures = {"tokens_per_second": tps, "coding_quality": 0.7, "general_quality": 0.8, "ttft_ms": 500}
    return {"model": model, "weights_digest": model[0] * 64} | figures | more


@pytest.fixture
def chosen(pillar):
    rows = [row("a:1", hardware="Xeon, 28 CPUs"), row("coder:1"), row("slow:1", tps=1)]
    return selection.select(rows, pillar["benchmark"])


def test_name_is_the_time_in_utc():
    assert report.file_name(NOW) == "benchmark_20260102T030405.md"
    assert report.file_name(NOW.astimezone(timezone(timedelta(hours=5)))) == "benchmark_20260102T030405.md"


def test_latest_is_the_last_by_time(tmp_path):
    assert report.latest(tmp_path) is None
    assert report.latest(tmp_path / "none") is None
    for day in (2, 1):
        (tmp_path / report.file_name(NOW.replace(day=day))).touch()
    assert report.latest(tmp_path).name == "benchmark_20260102T030405.md"


def test_slot_table_has_six_rows_with_socket_role_model_and_composite(chosen, pillar):
    rows = report.slot_rows(chosen, pillar)
    assert rows[0] == (1, "node1 (NUMA node 1, port 11434)", "general, locked", "a:1", 0.735)
    assert rows[2][1:4] == ("node0 (NUMA node 0, port 11435)", "coding, locked", "coder:1")
    assert rows[4][2:] == ("general, rotates", "-", "-")
    assert [line[0] for line in rows] == [1, 2, 3, 4, 5, 6]


def test_text_says_what_was_chosen_why_and_how(chosen, pillar):
    text = report.markdown(chosen, pillar, NOW)
    assert text.startswith("# Benchmark of 2026-01-02 03:04:05 UTC\n")
    assert "| 1 | node1 (NUMA node 1, port 11434) | general, locked | a:1 | 0.735 |" in text
    assert "| coder:1 | coding | 20.0 | 500.0 | 0.7 | 0.8 | 0.69 | 0.735 |" in text
    assert "- slow:1: 1 tokens per second, floor 5" in text
    assert "quality x 0.45 + min(tokens per second / 40, 1) x 0.30 + max(0, 1 - first token ms / 5000) x 0.25" in text
    assert "Xeon, 28 CPUs" in text


def test_empty_selection_still_reports(pillar):
    assert "No model was left out." in report.markdown(selection.select([], pillar["benchmark"]), pillar, NOW)


# -- the selection file -------------------------------------------------------------------------------------------


def hosts(*rows: dict, skipped: dict | None = None) -> dict:
    return {"ai_server": {"models": list(rows), "skipped": skipped or {}}}


def test_choosing_again_from_the_same_changes_nothing(pillar, tmp_path):
    known = hosts(row("a:1"), row("b:1"), skipped={"a:latest": "same weights as a:1"})
    first = choice.choose({}, known, pillar["benchmark"])
    target = choice.path([str(tmp_path), "/other"])
    choice.write(target, first)
    stored = json.loads(target.read_text())
    again = choice.choose(stored, known, pillar["benchmark"])
    assert again == stored
    assert choice.changes(stored, again) == {}
    assert first["excluded"] == {"a:latest": "same weights as a:1"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_partial_run_keeps_the_others(pillar):
    settings = pillar["benchmark"]
    stored = choice.choose({}, hosts(row("a:1"), row("b:1", tps=19)), settings)
    after = choice.choose(stored, hosts(row("b:1", tps=30)), settings)
    assert (after["slot1_general"], after["slot2_general"]) == ("b:1", "a:1")
    changes = choice.changes(stored, after)
    assert changes["slot1_general"] == {"old": "a:1", "new": "b:1"}
    assert changes["b:1"]["new"]["avg_tok_per_sec"] == 30
    assert "a:1" not in changes


def test_the_slowest_host_counts(pillar):
    both = {
        "one": {"models": [row("a:1", tps=30)], "skipped": {}},
        "two": {"models": [row("a:1", tps=7)], "skipped": {}},
    }
    assert choice.choose({}, both, pillar["benchmark"])["all_metrics"]["a:1"]["avg_tok_per_sec"] == 7


def test_other_floors_alone_are_a_change(pillar):
    known = hosts(row("a:1", general_quality=0.7))
    stored = choice.choose({}, known, pillar["benchmark"])
    pillar["benchmark"]["thresholds"]["min_composite_score"] = 0.9
    assert choice.changes(stored, choice.choose(stored, known, pillar["benchmark"])).keys() == {"selection"}


def test_a_selection_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(PlatformError, match=r"cannot be written.*nowhere"):
        choice.write(tmp_path / "nowhere" / "x.json", {})


@pytest.mark.parametrize("content", ["", "[]", '{"models": {}}', '{"models": [1]}', "{}"])
def test_metrics_of_another_shape_are_refused(tmp_path, content):
    file = tmp_path / "metrics.json"
    file.write_text(content)
    with pytest.raises(PlatformError, match="metrics"):
        choice.read_metrics(file)


def test_missing_metrics_are_refused(tmp_path):
    with pytest.raises(PlatformError, match="cannot be read"):
        choice.read_metrics(tmp_path / "none.json")


# -- progress -----------------------------------------------------------------------------------------------------


def test_lines_of_progress():
    pull = {"id": "ai", "data": {"model": "a:1", "status": "pulling", "completed": 50, "total": 200}}
    assert measure_progress.line("ai_platform/models/progress", pull) == "ai: pull a:1: pulling 25 %"
    test = {"model": "a:1", "instance": "node1", "test": "debug", "tests_done": 3, "tests": 7, "done": False}
    event = {"id": "ai", "data": test | {"tokens_per_second": 12.3}}
    assert measure_progress.line("ai_platform/benchmark/progress", event) == (
        "ai: node1: a:1: debug (3 of 7), 12.3 tokens/s"
    )
    assert measure_progress.line("salt/job/1/new", {}) == ""
