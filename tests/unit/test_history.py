"""Models from run to run: what is noise and what is drift, and what else two runs differ in."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
import yaml

from aiplatform import history, report, report_text, selection
from tests.conftest import CHECKOUT

START = datetime(2026, 1, 1, tzinfo=UTC)
NOISE = {"tokens_per_second": 0.4, "ttft_ms": 200, "composite": 0.017, "quality": 0}


def defaults() -> dict:
    formulas = ("benchmark", "models", "ollama", "platform")
    found = [yaml.safe_load((CHECKOUT / f"salt/{name}/defaults.yaml").read_text()) for name in formulas]
    return {key: value for one in found for key, value in one.items()}


def row(model: str, day: int, digest: str | None = None, **more) -> dict:
    figures = {"tokens_per_second": 20.0, "coding_quality": 0.7, "general_quality": 0.8, "ttft_ms": 500.0}
    identity = {"model": model, "weights_digest": digest or model[0] * 64}
    return identity | figures | {"measured_at": f"2026-01-{day:02}T00:00:00+00:00", "ollama_version": "0.17.4"} | more


def run(day: int, *rows: dict, **settings) -> dict:
    pillar = defaults()
    pillar["benchmark"] |= settings
    chosen = selection.select(rows, pillar["benchmark"])
    return json.loads(json.dumps(report.document(chosen, pillar, START.replace(day=day))))


def test_the_bands_of_a_new_installation_are_those_that_were_seen():
    assert defaults()["benchmark"]["noise"] == NOISE


@pytest.mark.parametrize(
    ("figure", "old", "within", "beyond"),
    [
        ("tokens_per_second", 20.0, 20.4, 20.401),
        ("tokens_per_second", 20.0, 19.6, 19.599),
        ("ttft_ms", 500.0, 700.0, 700.1),
        ("composite", 0.7, 0.717, 0.7171),
        ("composite", 0.7, 0.683, 0.6829),
        ("coding_quality", 0.7, 0.7, 0.7001),
        ("general_quality", 0.7, 0.7, 0.6999),
    ],
)
def test_just_the_band_is_noise_and_more_is_drift(figure, old, within, beyond):
    assert history.drift({figure: old}, {figure: within}, NOISE) == {}
    assert history.drift({figure: old}, {figure: beyond}, NOISE) == {figure: pytest.approx(beyond - old)}


def test_what_a_run_kept_is_no_point_of_its_own():
    runs = [run(1, row("a:1", 1)), run(2, row("a:1", 1), row("b:1", 2)), run(3, row("a:1", 3), row("b:1", 2))]
    lines = history.points(runs)
    assert [point["measured_at"][8:10] for point in lines["a:1"]] == ["01", "03"]
    assert [point["run"][8:10] for point in lines["b:1"]] == ["02"]


def test_a_model_is_its_weights():
    runs = [run(1, row("old:1", 1, "a" * 64)), run(2, row("new:1", 2, "a" * 64)), run(3, row("new:1", 3, "b" * 64))]
    lines = history.points(runs)
    assert {name: len(line) for name, line in lines.items()} == {"new:1 (sha256:aaaaaaaaaaaa)": 2, "new:1": 1}


def test_largest_steps_say_how_noisy_this_hardware_is():
    runs = [run(day, row("a:1", day, tokens_per_second=tps)) for day, tps in ((1, 20.0), (2, 20.3), (3, 20.2))]
    (line,) = history.points(runs).values()
    assert history.largest_steps(line)["tokens_per_second"] == 0.3
    assert history.largest_steps(line[:1]) == {}


def test_two_runs_of_the_same_differ_by_noise():
    old = run(1, row("a:1", 1), row("b:1", 1))
    new = run(2, row("a:1", 2, tokens_per_second=20.3, ttft_ms=520.0), row("b:1", 1))
    found = history.compare(old, new)
    assert found["drift"] == []
    assert found["kept"] == ["b:1"]
    assert found["models"]["a:1"]["new"]["tokens_per_second"] == 20.3
    assert (found["identity"], found["slots"], found["settings"]) == ([], {}, {})
    assert "All differences are noise." in report_text.compared(found)
    assert "20.0 → 20.3" in report_text.compared(found)


def test_drift_is_flagged_with_its_size_and_the_conditions_that_changed():
    old = run(1, row("a:1", 1), row("b:1", 1))
    new = run(2, row("a:1", 2, tokens_per_second=15.0, ollama_version="0.18.0"), row("b:1", 2, general_quality=0.79))
    found = history.compare(old, new)
    assert found["drift"] == ["b:1", "a:1"]
    assert found["models"]["a:1"]["drift"] == {"tokens_per_second": -5.0, "composite": pytest.approx(-0.037, abs=0.001)}
    assert found["models"]["a:1"]["conditions"] == {"ollama_version": {"old": "0.17.4", "new": "0.18.0"}}
    assert found["models"]["b:1"]["drift"] == {"general_quality": pytest.approx(-0.01)}
    text = report_text.compared(found)
    assert "tokens per second -5, composite -0.037 (other conditions: ollama_version: 0.17.4 → 0.18.0)" in text
    assert "More than noise: b:1, a:1." in text


def test_models_that_are_not_what_they_were_are_named():
    old = run(1, row("moved:1", 1, "a" * 64), row("same:1", 1, "b" * 64), row("gone:1", 1, "c" * 64), row("k:1", 1))
    new = run(
        2,
        row("moved:1", 2, "d" * 64),
        row("renamed:1", 2, "b" * 64),
        row("k:1", 2, coding_quality=1.0, general_quality=0.6),
    )
    found = history.compare(old, new)
    assert found["identity"] == [
        "k:1: was a general model, is a coding one",
        "moved:1: other weights than before (sha256:aaaaaaaaaaaa, now sha256:dddddddddddd)",
        "renamed:1: the weights that were same:1",
    ]
    assert (found["new"], sorted(found["gone"])) == (["moved:1"], ["gone:1", "moved:1"])


def test_settings_and_slots_that_changed_are_named():
    found = history.compare(run(1, row("a:1", 1)), run(2, row("b:1", 2), num_predict=700))
    assert found["settings"] == {"num_predict": {"old": 500, "new": 700}}
    assert found["slots"] == {"slot1_general": {"old": "a:1", "new": "b:1"}}
    text = report_text.compared(found)
    assert "num_predict: 500 → 700" in text
    assert "slot1_general: a:1 → b:1" in text
    assert "No model was measured again." in text


def test_history_is_a_table_that_marks_drift():
    runs = [run(day, row("a:1", day, tokens_per_second=tps)) for day, tps in ((1, 20.0), (2, 25.0))]
    lines = {name: history.with_drift(line, NOISE) for name, line in history.points(runs).items()}
    text = report_text.history(lines, NOISE)
    assert "a:1    2026-01-01 00:00  20.0" in text
    assert "tokens per second +5, composite +0.037" in text
    assert "Noise: tokens per second 0.4, ttft ms 200, composite 0.017" in text
    assert "No run is kept yet" in report_text.history({}, NOISE)
