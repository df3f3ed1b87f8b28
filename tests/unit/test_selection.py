"""Who gets a slot, and why the others do not: every boundary of the rules."""

from __future__ import annotations

import math

import pytest
import yaml

from aiplatform import candidates, selection
from aiplatform.errors import PlatformError

GENERAL = ["slot1_general", "slot2_general", "slot5_general_rotate"]
CODING = ["slot3_coding", "slot4_coding", "slot6_coding_rotate"]


@pytest.fixture
def settings(checkout):
    return yaml.safe_load((checkout / "salt/benchmark/defaults.yaml").read_text())["benchmark"]


def row(model: str, tps: float = 10, coding: float = 0.7, general: float = 0.8, ttft: float = 500, **more) -> dict:
    figures = {"tokens_per_second": tps, "coding_quality": coding, "general_quality": general, "ttft_ms": ttft}
    return {"model": model} | figures | more


def slots(result: dict, keys: list[str]) -> list[str | None]:
    return [result[key] for key in keys]


def test_best_three_of_each_kind_locked_slots_first(settings):
    rows = [row(f"g{n}:1", tps=10 + n) for n in range(5)] + [row(f"coder{n}:1", tps=10 + n) for n in range(5)]
    result = selection.select(rows, settings)
    assert slots(result, GENERAL) == ["g4:1", "g3:1", "g2:1"]
    assert slots(result, CODING) == ["coder4:1", "coder3:1", "coder2:1"]
    assert [entry["name"] for entry in result["coding_ranking"]] == [f"coder{n}:1" for n in (4, 3, 2, 1, 0)]
    assert result["excluded"]["g0:1"] == "rank 5 of 5 general models, and 3 slots for them"


def test_every_key_is_there(settings):
    result = selection.select([row("g:1")], settings)
    assert result.keys() >= {*GENERAL, *CODING, "general_ranking", "coding_ranking", "all_metrics", "excluded"}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_models_than_slots_leave_nulls(settings, count):
    result = selection.select([row(f"g{n}:1", tps=20 - n) for n in range(count)], settings)
    assert slots(result, GENERAL) == [f"g{n}:1" for n in range(count)] + [None] * (3 - count)
    assert slots(result, CODING) == [None] * 3


def test_one_model_never_fills_two_slots(settings):
    result = selection.select([row("coder:1")], settings)
    assert slots(result, GENERAL) + slots(result, CODING) == [None, None, None, "coder:1", None, None]


@pytest.mark.parametrize(("tps", "slotted"), [(5.0, True), (4.999, False), (0, False)])
def test_speed_floor(settings, tps, slotted):
    result = selection.select([row("g:1", tps=tps)], settings)
    assert (result["slot1_general"] == "g:1") is slotted
    assert ("floor 5" in result["excluded"].get("g:1", "")) is not slotted


@pytest.mark.parametrize(("quality", "slotted"), [(0.6, True), (0.1 + 0.5, True), (0.5999, False)])
def test_quality_floor_of_the_kind_served(settings, quality, slotted):
    result = selection.select([row("g:1", coding=0, general=quality), row("coder:1", coding=quality)], settings)
    assert (result["slot1_general"] == "g:1") is slotted
    assert (result["slot3_coding"] == "coder:1") is slotted


def test_quality_of_the_other_kind_does_not_count(settings):
    result = selection.select([row("g:1", coding=0.0, general=0.9), row("coder:1", coding=0.9, general=0.0)], settings)
    assert result["excluded"] == {}


def test_low_composite_only_warns(settings):
    result = selection.select([row("g:1", tps=5, general=0.6, ttft=5000)], settings)
    assert result["slot1_general"] == "g:1"
    assert result["warnings"] == {"g:1": "composite 0.307 is under 0.55"}


def test_slow_first_token_is_no_exclusion(settings):
    result = selection.select([row("g:1", ttft=60000)], settings)
    assert result["slot1_general"] == "g:1"
    assert result["all_metrics"]["g:1"]["latency_score"] == 0


@pytest.mark.parametrize(
    ("ttft", "share", "composite"),
    [(0, 1.0, 0.685), (4999, 0.0002, 0.43505), (5000, 0.0, 0.435), (5001, 0.0, 0.435)],
)
def test_first_token_counts_up_to_five_seconds(settings, ttft, share, composite):
    row_ = row("g:1", tps=10, general=0.8, ttft=ttft)
    found = candidates.candidate(row_, settings)
    assert found.scores.latency == pytest.approx(share)
    assert found.composite == pytest.approx(composite)
    assert selection.select([row_], settings)["slot1_general"] == "g:1"


def test_all_excluded_each_with_all_its_reasons(settings):
    result = selection.select([row("a:1", tps=1, coding=0.1, general=0.1), row("b:1", tps=2)], settings)
    assert slots(result, GENERAL + CODING) == [None] * 6
    assert "1 tokens per second, floor 5" in result["excluded"]["a:1"]
    assert "general quality 0.100, floor 0.6" in result["excluded"]["a:1"]
    assert result["excluded"].keys() == {"a:1", "b:1"}
    assert result["general_ranking"] == []
    assert result["all_metrics"].keys() == {"a:1", "b:1"}


def test_lead_of_exactly_a_tenth_is_coding(settings):
    # 0.45 times the difference of the qualities is the difference of the composites.
    lead = row("m:1", coding=0.6 + 0.1 / 0.45, general=0.6)
    assert selection.select([lead], settings)["slot3_coding"] == "m:1"
    less = row("m:1", coding=0.6 + 0.0999 / 0.45, general=0.6)
    assert selection.select([less], settings)["slot1_general"] == "m:1"


def test_ties_go_to_the_faster_then_by_name(settings):
    # Both beyond the ceiling: equal composites.
    rows = [row("b:1", tps=50), row("a:1", tps=50), row("c:1", tps=60)]
    assert slots(selection.select(rows, settings), GENERAL) == ["c:1", "a:1", "b:1"]
    assert selection.select(rows, settings) == selection.select(rows[::-1], settings)


def test_same_weights_hold_one_slot(settings):
    digest = "a" * 64
    rows = [
        row("m:latest", tps=30, weights_digest=digest),
        row("m:7b", tps=29, weights_digest=f"sha256:{digest}"),
        row("other:1"),
    ]
    result = selection.select(rows, settings)
    assert slots(result, GENERAL) == ["m:7b", "other:1", None]
    assert result["excluded"] == {"m:latest": "same weights as m:7b (sha256:aaaaaaaaaaaa)"}


def test_unknown_digests_are_not_the_same(settings):
    result = selection.select([row("a:1"), row("b:1", weights_digest=None)], settings)
    assert None not in slots(result, GENERAL)[:2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, -0.001, "10", None, True, 10**400])
@pytest.mark.parametrize("key", ["tokens_per_second", "ttft_ms", "coding_quality", "general_quality"])
def test_impossible_figures_are_refused(settings, key, value):
    with pytest.raises(PlatformError, match=rf"{key} of bad:1 cannot be used.*expected: a .*number"):
        selection.select([row("good:1"), row("bad:1") | {key: value}], settings)


def test_quality_above_one_is_refused(settings):
    with pytest.raises(PlatformError, match=r"from 0 to 1; actual: 1\.01"):
        selection.select([row("m:1", coding=1.01)], settings)


def test_nameless_and_repeated_models_are_refused(settings):
    with pytest.raises(PlatformError, match="no name"):
        selection.select([row("")], settings)
    with pytest.raises(PlatformError, match="twice"):
        selection.select([row("M"), row("m:latest")], settings)


def test_skipped_names_are_left_out(settings):
    settings["skip_aliases"] = ["Alias", "other:latest"]
    result = selection.select([row("alias:latest"), row("other"), row("alias:7b")], settings)
    assert result["excluded"].keys() == {"alias:latest", "other"}
    assert result["slot1_general"] == "alias:7b"


def test_metrics_are_rounded_and_keep_their_source(settings):
    source = row("g:1", tps=12.3456, coding=0.71239, general=0.81239, ttft=512.345, suite="s", weights_digest="d" * 64)
    metrics = selection.select([source], settings)["all_metrics"]["g:1"]
    assert (metrics["avg_tok_per_sec"], metrics["latency_ms"]) == (12.3, 512.3)
    assert (metrics["coding_quality"], metrics["toks_norm"]) == (0.712, 0.309)
    assert metrics["category"] == "general"
    assert selection.stored_rows({"all_metrics": {"g:1": metrics}}) == [source]


def test_a_partial_run_takes_nothing_away(settings):
    stored = [row("a:1", weights_digest="a"), row("b:1", weights_digest="b")]
    merged = selection.merge(stored, [row("b:1", tps=20, weights_digest="b"), row("c:1", weights_digest="c")])
    assert [(one["model"], one["tokens_per_second"]) for one in merged] == [("a:1", 10), ("b:1", 20), ("c:1", 10)]


def test_merge_follows_weights_not_names():
    stored = [row("old-name:1", weights_digest="a"), row("moved:1", weights_digest="b")]
    new = [row("new-name:1", weights_digest="a"), row("moved:1", weights_digest="c")]
    assert [one["model"] for one in selection.merge(stored, new)] == ["moved:1", "new-name:1"]


def test_slot_keys():
    assert selection.slot_key(1) == "slot1_general"
    assert selection.slot_key(6) == "slot6_coding_rotate"
