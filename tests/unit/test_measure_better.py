"""Recommended models, and how long a run will still take."""

from __future__ import annotations

import pytest

from aiplatform import measure_better
from aiplatform.measure import CONDITIONS, Task
from aiplatform.measure_progress import MEASURE_TAG, Pace, line

HERE = {"node1": dict.fromkeys(CONDITIONS, "x")}


@pytest.fixture
def settings():
    rows = [{"name": "g:1", "category": "general"}, {"name": "C:1", "category": "coding"}]
    return {
        "pull_if_better": True, "recommended_models": rows, "thresholds": {"min_composite_score": 0.55},
        "repeats": 1, "scoring": "markers",
    }  # fmt: skip


def chosen(general=(), coding=()) -> dict:
    keys = {"general": ("slot1_general", "slot2_general", "slot5_general_rotate"),
            "coding": ("slot3_coding", "slot4_coding", "slot6_coding_rotate")}  # fmt: skip
    found = {}
    for kind, scores in (("general", general), ("coding", coding)):
        names = [f"{kind}{place}:1" for place in range(len(scores))]
        ranking = zip(names, scores, strict=True)
        found[f"{kind}_ranking"] = [{"name": name, "composite": score} for name, score in ranking]
        found |= {key: names[place] if place < len(names) else None for place, key in enumerate(keys[kind])}
    return found


GOOD = (0.9, 0.8, 0.55)


def test_slots_that_are_filled_well_want_nothing(settings):
    assert measure_better.low(chosen(GOOD, GOOD), settings) == {}
    assert measure_better.wanted(chosen(GOOD, GOOD), [], {}, settings, HERE) == {}


def test_an_empty_slot_and_a_low_score_want_a_model_of_their_kind(settings):
    assert measure_better.low(chosen(GOOD[:2], (0.9, 0.8, 0.549)), settings) == {
        "general": "2 of 3 general slots are filled", "coding": "coding2:1 has composite 0.549, floor 0.55"
    }  # fmt: skip
    assert list(measure_better.wanted(chosen(GOOD, GOOD[:1]), [], {}, settings, HERE)) == ["C:1"]


def test_only_where_it_is_asked_for(settings):
    settings["pull_if_better"] = False
    assert measure_better.wanted(chosen(), [], {}, settings, HERE) == {}


def test_what_is_installed_or_was_tried_is_not_fetched(settings):
    assert list(measure_better.wanted(chosen(), ["c:1"], {}, settings, HERE)) == ["g:1"]
    record = {"model": "G:1", "instance": "node1", "ttft_ms": 1.0, "repeats": [{}], **HERE["node1"]}
    assert list(measure_better.wanted(chosen(), [], {"d": record}, settings, HERE)) == ["C:1"]
    # Under other conditions it may be worth another try.
    assert len(measure_better.wanted(chosen(), [], {"d": record | {"suite": "old"}}, settings, HERE)) == 2


def test_a_slot_is_earned_under_any_spelling(settings):
    assert measure_better.earns("General0:1", chosen(GOOD, ()))
    assert not measure_better.earns("other:1", chosen(GOOD, GOOD))


# -- how long it takes --------------------------------------------------------------------------------------------


def test_the_time_left_follows_the_bytes_that_are_left():
    now = [0.0]
    small, large, other = (Task("s:1", "node1", 1, "a"), Task("l:1", "node1", 10, "b"), Task("o:1", "node0", 1, "c"))
    pace = Pace({task.model: task for task in (small, large, other)}, 7, lambda: now[0])
    now[0] = 2.0
    assert pace.left(small, 1, False) == (6 + 70) * 2
    now[0] = 20.0
    # The other instance is slower, but has less to do.
    assert pace.left(other, 1, False) == (6 + 70) * 20
    for done in range(2, 8):
        now[0] = 2.0 * done
        left = pace.left(small, done, False)
    assert left == 70 * 2
    assert pace.left(small, 7, True) == 70 * 2
    now[0] = 14 + 20
    assert pace.left(large, 1, False) == pytest.approx(34 / 17 * 60, abs=120)


def test_what_an_earlier_run_made_is_not_taken_for_speed():
    now = [0.0]
    pace = Pace({"m:1": Task("m:1", "node1", 1, "a")}, 7, lambda: now[0])
    now[0] = 3.0
    assert pace.left(Task("m:1", "node1", 1, "a"), 6, False) == 3.0


@pytest.mark.parametrize(
    ("seconds", "words"), [(4, "about 10 s"), (61, "about 60 s"), (600, "about 10 min"), (7200, "about 2.0 h")]
)
def test_the_line_says_model_test_rate_and_time_left(seconds, words):
    data = {"model": "m:1", "instance": "node1", "test": "debug", "tests_done": 3, "tests": 7, "done": False,
            "tokens_per_second": 7.5, "seconds_left": seconds}  # fmt: skip
    assert line(MEASURE_TAG, {"id": "one", "data": data}) == (
        f"one: node1: m:1: debug (3 of 7), 7.5 tokens/s, {words} left"
    )
